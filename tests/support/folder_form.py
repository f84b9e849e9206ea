"""A unit's group in the form of version 0.1: a folder with a file for every chunk and every array's description."""

from __future__ import annotations

import zipfile
from pathlib import Path


def unpack(folder: Path) -> None:
    """Replace the pack of the unit in `folder` by the folder `tensors.zarr`; zarr reads both as the same group."""
    with zipfile.ZipFile(folder / "tensors.zarr.zip") as pack:
        pack.extractall(folder / "tensors.zarr")
    (folder / "tensors.zarr.zip").unlink()
    (folder / "parts.json").unlink(missing_ok=True)
