"""Which layers are quantized, whether a pipeline is supported, and whether it fits."""
