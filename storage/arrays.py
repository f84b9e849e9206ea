"""A unit's Zarr group, read as numpy arrays, for code that does not need torch (which takes seconds to import).

zarr is imported on first use: `status` and a run with nothing to do read no array.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adatsq_pipe.storage.files import read_json_object

if TYPE_CHECKING:
    import numpy.typing as npt
    import zarr

GROUP = "tensors.zarr"
MEMBERS = "members"
"""Attribute of a group that stacks its tensors: tensor name -> [array name, index]."""


def open_group(folder: Path) -> zarr.Group:
    """The group of the unit in `folder`, read-only. Cached until the group on disk is replaced."""
    stat = (folder / GROUP / "zarr.json").stat()
    return _open(folder, (stat.st_ino, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=256)
def _open(folder: Path, stamp: tuple[int, int, int]) -> zarr.Group:
    import zarr  # `status` reads no array

    return zarr.open_group(folder / GROUP, mode="r")


def array_of(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """The array `name` of a group. Raises KeyError if there is none."""
    array = group[name]
    assert not hasattr(array, "array_keys"), f"{name} is a group"
    return array


def read(folder: Path, name: str) -> npt.NDArray[Any]:
    """One array in the dtype it is stored in (bf16 as its uint16 bits)."""
    values: npt.NDArray[Any] = array_of(open_group(folder), name)[...]  # type: ignore[assignment]
    return values


def file_prefixes(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Prefixes, relative to `folder`, of the files that hold the named tensors."""
    members = read_json_object(folder / GROUP / "zarr.json").get("attributes", {}).get(MEMBERS)
    if members is None:
        return tuple(f"{GROUP}/{name}/" for name in names)
    stacks = sorted({members[name][0] for name in names})
    return (
        *(f"{GROUP}/{stack}/zarr.json" for stack in stacks),
        *(f"{GROUP}/{members[name][0]}/c/{members[name][1]}/" for name in names),
    )


def attributes(folder: Path) -> dict[str, Any]:
    """The JSON attributes of the group. Their types are the stage's that wrote them."""
    return dict(open_group(folder).attrs)
