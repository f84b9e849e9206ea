"""The versions of what computed a result, as reports name them."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("adatsq-pipe", "torch", "diffusers", "transformers", "ray", "numpy", "zarr", "pyarrow")


def versions() -> dict[str, str]:
    """The version of Python and of each of PACKAGES, as they are installed here."""
    return {"Python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
