"""What several test files need: a made-up run directory, and a fake denoiser of a few linear layers."""
