"""The versions of what computed a result, as reports name them."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("adatsq-pipe", "torch", "diffusers", "transformers", "ray", "numpy", "zarr", "pyarrow")


def versions() -> dict[str, str]:
    """The version of Python and of each of PACKAGES, as they are installed here.

    A submitted job installs this package with a local version ("0.2.0+..."), which says nothing of the result.
    """
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    found["adatsq-pipe"] = found["adatsq-pipe"].partition("+")[0]
    return {"Python": platform.python_version(), **found}
