"""Any diffusers pipeline, driven through its own loop."""
