"""Assemble, and other formats."""
