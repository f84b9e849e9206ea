"""Exceptions to the generic rules, one file per transformer class that needs them."""
