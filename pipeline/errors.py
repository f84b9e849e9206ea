"""The error for a configuration that cannot be used."""

from __future__ import annotations


class ConfigError(ValueError):
    """The configuration cannot be used; the message gives the key, the value and what was expected."""
