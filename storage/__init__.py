"""Bytes at rest: paths, Zarr, safetensors, Parquet, digests. Knows no models and no Ray."""
