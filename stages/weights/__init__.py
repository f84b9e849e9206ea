"""Solve: low-bit weights."""
