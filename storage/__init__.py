"""Bytes at rest: paths, Zarr, safetensors, Parquet, digests. Imports no model code and no Ray."""
