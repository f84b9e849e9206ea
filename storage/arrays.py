"""The numbers of a unit's Zarr group as numpy arrays, for who has no need of torch (which takes seconds to import).

Zarr itself is imported on first use: a run with nothing to do reads no array.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt
    import zarr

GROUP = "tensors.zarr"
MEMBERS = "members"
"""The attribute of a group whose arrays are stacks: where each tensor lies, as [array, place]."""


def open_group(folder: Path) -> zarr.Group:
    """The group of the unit in `folder`, to be read. Opened again only if it is another one by now."""
    stat = (folder / GROUP / "zarr.json").stat()
    return _opened(folder, (stat.st_ino, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=256)
def _opened(folder: Path, stamp: tuple[int, int, int]) -> zarr.Group:
    import zarr

    return zarr.open_group(folder / GROUP, mode="r")


def read(folder: Path, name: str) -> npt.NDArray[Any]:
    """One array as it is stored (bf16 as its uint16 bits)."""
    array = open_group(folder)[name][...]  # type: ignore[index]
    return array  # type: ignore[return-value]


def file_prefixes(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """What the names of the files begin with, relative to `folder`, that hold the named tensors of its group."""
    members = json.loads((folder / GROUP / "zarr.json").read_text()).get("attributes", {}).get(MEMBERS)
    if members is None:
        return tuple(f"{GROUP}/{name}/" for name in names)
    stacks = sorted({members[name][0] for name in names})
    return (
        *(f"{GROUP}/{array}/zarr.json" for array in stacks),
        *(f"{GROUP}/{members[name][0]}/c/{members[name][1]}/" for name in names),
    )


def attributes(folder: Path) -> dict[str, Any]:
    """The JSON attributes of the group."""
    return dict(open_group(folder).attrs)
