"""The report's plots, one module each."""
