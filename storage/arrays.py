"""The numbers of a unit's Zarr group as numpy arrays, for who has no need of torch (which takes seconds to import).

Zarr itself is imported on first use: a run with nothing to do reads no array.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt
    import zarr

GROUP = "tensors.zarr"


def open_group(folder: Path) -> zarr.Group:
    """The group of the unit in `folder`, to be read."""
    import zarr

    return zarr.open_group(folder / GROUP, mode="r")


def read(folder: Path, name: str) -> npt.NDArray[Any]:
    """One array as it is stored (bf16 as its uint16 bits)."""
    array = open_group(folder)[name][...]  # type: ignore[index]
    return array  # type: ignore[return-value]


def attributes(folder: Path) -> dict[str, Any]:
    """The JSON attributes of the group."""
    return dict(open_group(folder).attrs)
