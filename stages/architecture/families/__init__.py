"""Only what the generic denoiser cannot infer, one file per family. Nothing has been needed yet."""
