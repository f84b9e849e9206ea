"""Drives any diffusers pipeline through its own sampling loop."""
