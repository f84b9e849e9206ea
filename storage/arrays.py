"""A unit's Zarr group, read as numpy arrays, for code that does not need torch (which takes seconds to import).

zarr and numpy are imported on first use: `status` and a run with nothing to do read no array.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, cast

from adatsq_pipe.storage.files import Stamp, file_size, read_json_object, stamp_of
from adatsq_pipe.storage.pack import PACK, contents

if TYPE_CHECKING:
    import numpy.typing as npt
    import zarr

FOLDER = "tensors.zarr"
"""The folder of a group as version 0.1 wrote it: a file for every chunk and every array's description."""
MEMBERS = "members"
"""Attribute of a group that stacks its tensors: tensor name -> [array name, index]."""


def open_group(folder: Path) -> zarr.Group:
    """The group of the unit in `folder`, read-only; of one in a pack its description, without the numbers. Cached until
    the group on disk is replaced."""
    return _open(folder, *_version(folder))


def _version(folder: Path) -> tuple[bool, Stamp]:
    """Whether the group is in a pack, and what tells it from the one that replaces it."""
    path, packed = folder / PACK, True
    if not path.exists():
        path, packed = folder / FOLDER / "zarr.json", False
    return packed, stamp_of(path)


@lru_cache(maxsize=256)
def _open(folder: Path, packed: bool, stamp: Stamp) -> zarr.Group:
    import zarr  # `status` reads no array
    from zarr.core.buffer.cpu import Buffer  # as zarr
    from zarr.storage import MemoryStore  # as zarr

    if not packed:
        return zarr.open_group(folder / FOLDER, mode="r")
    documents = contents(folder / PACK).documents
    return zarr.open_group(MemoryStore({key: Buffer.from_bytes(data) for key, data in documents.items()}), mode="r")


def array_of(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """The array `name` of a group. Raises KeyError if there is none."""
    array = group[name]
    assert not hasattr(array, "array_keys"), f"{name} is a group"
    return array


def read(folder: Path, name: str) -> npt.NDArray[Any]:
    """One array in the dtype it is stored in (bf16 as its uint16 bits)."""
    return numbers_of(folder, array_of(open_group(folder), name))


def member(folder: Path, name: str) -> tuple[zarr.Array[Any], int | EllipsisType]:
    """The array that holds the tensor `name`, and its place there; the whole array in a group that stacks nothing."""
    version = _version(folder)
    group = _open(folder, *version)
    members = cast("Mapping[str, tuple[str, int]] | None", group.attrs.get(MEMBERS))
    if members is None:
        return array_of(group, name), ...
    stack, index = members[name]
    return _stack(folder, *version, stack), index


@lru_cache(maxsize=1024)
def _stack(folder: Path, packed: bool, stamp: Stamp, name: str) -> zarr.Array[Any]:
    """An array that holds many tensors, which are asked for one by one."""
    return array_of(_open(folder, packed, stamp), name)


def mapped(folder: Path, name: str) -> npt.NDArray[Any]:
    """The numbers of one tensor, mapped into memory: a number is read when it is used, and the system may drop it
    again. What is changed in place is copied first; the file keeps its numbers."""
    import numpy as np  # `status` reads no array

    array, index = member(folder, name)
    place, shape = _place(folder, array, index), array.shape if index is ... else array.shape[1:]
    if place is None or not array.nbytes:
        return numbers_of(folder, array, index)
    path, start = place
    found = np.memmap(path, dtype=array.dtype.newbyteorder("<"), mode="c", offset=start, shape=shape)
    return found.view(np.ndarray).astype(array.dtype, copy=False)


def numbers_of(folder: Path, array: zarr.Array[Any], index: int | EllipsisType = ...) -> npt.NDArray[Any]:
    """An array, or one chunk of it, with no second copy in memory: zarr's own way of reading makes two."""
    import numpy as np  # `status` reads no array

    place, shape = _place(folder, array, index), array.shape if index is ... else array.shape[1:]
    if place is None and index is ... and (folder / PACK).exists() and array.nbytes:
        return np.stack([numbers_of(folder, array, i) for i in range(array.shape[0])])
    if place is None:
        return np.array(array[index])
    path, start = place
    dtype = array.dtype.newbyteorder("<")
    return np.fromfile(path, dtype, math.prod(shape), offset=start).astype(array.dtype, copy=False).reshape(shape)


def _place(folder: Path, array: zarr.Array[Any], index: int | EllipsisType) -> tuple[Path, int] | None:
    """The file that holds the array's numbers (or those at `index`) as they are, and where they begin; None if they are
    not in one place. Raises KeyError if a pack does not have them."""
    chunks = array.shape if index is ... else (1, *array.shape[1:])
    if array.compressors or array.filters or array.shards or array.chunks != chunks:
        return None
    place = [0] * len(chunks) if index is ... else [index, *[0] * (len(chunks) - 1)]
    key, size = "/".join([array.path, "c", *map(str, place)]), math.prod(chunks) * array.dtype.itemsize
    if (folder / PACK).exists():
        return (folder / PACK, contents(folder / PACK).chunks[key].start) if size else None
    path = folder / FOLDER / key
    return (path, 0) if file_size(str(path)) == size else None


def file_prefixes(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Prefixes, relative to `folder`, of the files that hold the named tensors of a group in a folder."""
    path = folder / FOLDER / "zarr.json"
    members = _members(path, stamp_of(path))
    if members is None:
        return tuple(f"{FOLDER}/{name}/" for name in names)
    stacks = sorted({members[name][0] for name in names})
    return (
        *(f"{FOLDER}/{stack}/zarr.json" for stack in stacks),
        *(f"{FOLDER}/{members[name][0]}/c/{members[name][1]}/" for name in names),
    )


@lru_cache(maxsize=256)
def _members(path: Path, stamp: Stamp) -> Mapping[str, tuple[str, int]] | None:
    """The attribute MEMBERS in a group's zarr.json; None if it has none."""
    found: Mapping[str, tuple[str, int]] | None = read_json_object(path).get("attributes", {}).get(MEMBERS)
    return found


def attributes(folder: Path) -> dict[str, Any]:
    """The JSON attributes of the group. Their types are the stage's that wrote them."""
    return dict(open_group(folder).attrs)
