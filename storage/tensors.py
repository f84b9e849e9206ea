"""Named tensors of one unit, as a Zarr group that only the unit's worker writes.

Zarr has no bf16: it is stored as its uint16 bits with the attribute `dtype`. Arrays are one chunk each and not
compressed (activations do not compress), so equal tensors give equal files. `adatsq_pipe.storage.arrays` reads the
same groups without torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import zarr
from safetensors.torch import load_file, save_file
from torch import Tensor

from adatsq_pipe.storage import arrays
from adatsq_pipe.storage.arrays import GROUP, MEMBERS, array_of, open_group
from adatsq_pipe.storage.files import write_with
from adatsq_pipe.storage.fingerprint import Plain
from adatsq_pipe.storage.weights import LazyTensor

if TYPE_CHECKING:
    import numpy.typing as npt

_BIT_TYPES = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8}
AT_ONCE = 2**24
"""Bytes up to which tensors are joined in memory to be written."""
STRAIGHT = 2**20
"""Bytes of a chunk from which it is written without zarr."""
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in _BIT_TYPES}


@dataclass(frozen=True)
class Stack:
    """Tensors of one shape and dtype, at least one, that become one array, in which they lie one after the other."""

    parts: Sequence[Tensor]


def write(
    folder: Path, tensors: Mapping[str, Tensor | LazyTensor | Stack], attributes: Mapping[str, Plain] | None = None
) -> None:
    """Write `tensors` (on any device) and JSON `attributes` to a new group `<folder>/tensors.zarr`.

    Lazy ones are loaded one after the other, and a stack is not copied.
    """
    group = _new_group(folder, attributes or {})
    for name, tensor in tensors.items():
        if isinstance(tensor, Stack):
            _write_parts(folder, group, name, tensor.parts)
            continue
        loaded = tensor.load() if isinstance(tensor, LazyTensor) else tensor
        shape = tuple(loaded.shape)
        _fill(folder, _create(group, name, loaded.dtype, shape, shape), _numbers(loaded))


def _write_parts(folder: Path, group: zarr.Group, name: str, parts: Sequence[Tensor]) -> None:
    """Write the array's only chunk part by part. Raises ValueError for parts of several shapes or dtypes."""
    if len({(part.shape, part.dtype) for part in parts}) != 1:
        raise ValueError(f"{name} has parts of several shapes or dtypes")
    shape = (len(parts), *parts[0].shape)
    array = _create(group, name, parts[0].dtype, shape, shape)
    path = folder.joinpath(GROUP, array.path, "c", *["0"] * len(shape))
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for part in parts:
            numbers = _numbers(part)
            numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).tofile(file)


def write_stacked(folder: Path, tensors: Mapping[str, Tensor], attributes: Mapping[str, Plain] | None = None) -> None:
    """`write` for many tensors of few shapes: those of one shape and dtype become one array, a chunk each.

    A Zarr array costs more than a millisecond, a chunk far less. Tensors are still read by name: the group's attribute
    `members` maps a name to [array name, index].
    """
    groups: dict[tuple[torch.dtype, torch.Size], list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.dtype, tensor.shape), []).append(name)
    stacks = {f"stack{i}": names for i, names in enumerate(groups.values())}
    members: Plain = {name: [stack, index] for stack, names in stacks.items() for index, name in enumerate(names)}
    group = _new_group(folder, {**(attributes or {}), MEMBERS: members})
    for stack, names in stacks.items():
        first = tensors[names[0]]
        array = _create(group, stack, first.dtype, (len(names), *first.shape), (1, *first.shape))
        if array.nbytes <= AT_ONCE:  # a write of a chunk alone takes twice as long
            array[...] = _numbers(torch.stack([tensors[name] for name in names]))
            continue
        for index, name in enumerate(names):
            array[index] = _numbers(tensors[name])


def _new_group(folder: Path, attributes: Mapping[str, Plain]) -> zarr.Group:
    return zarr.open_group(folder / GROUP, mode="w", attributes=cast("dict[str, Any]", dict(attributes)))


def _fill(folder: Path, array: zarr.Array[Any], numbers: npt.NDArray[Any]) -> None:
    """Write a whole array of one chunk. A large chunk goes straight to its file, as the bytes that zarr would write
    there."""
    if numbers.nbytes < STRAIGHT:
        array[...] = numbers
        return
    path = folder.joinpath(GROUP, array.path, "c", *["0"] * numbers.ndim)
    path.parent.mkdir(parents=True)
    numbers.astype(array.dtype.newbyteorder("<"), copy=False).tofile(path)


def _numbers(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor's numbers as an array of the type in which they are stored; no copy of what lies in memory in order."""
    values = tensor.detach().cpu().contiguous()
    bit_type = _BIT_TYPES.get(values.dtype)
    found: npt.NDArray[Any] = (values.view(bit_type) if bit_type else values).numpy()
    return found


def _create(
    group: zarr.Group, name: str, dtype: torch.dtype, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> zarr.Array[Any]:
    """A new array for tensors of that dtype."""
    return group.create_array(
        name,
        shape=shape,
        dtype=_numbers(torch.empty(0, dtype=dtype)).dtype,
        chunks=tuple(max(1, n) for n in chunks),
        compressors=None,
        attributes={"dtype": str(dtype).removeprefix("torch.")} if dtype in _BIT_TYPES else {},
        config={"write_empty_chunks": True},
    )


def read(folder: Path, names: list[str] | None = None) -> dict[str, Tensor]:
    """The tensors of `<folder>/tensors.zarr` (CPU): `names` in their order, or all of them sorted by name."""
    group = open_group(folder)
    members = cast("Mapping[str, tuple[str, int]] | None", group.attrs.get(MEMBERS))
    if members is None:
        chosen = names if names is not None else sorted(group.array_keys())
        return {name: _tensor(folder, array_of(group, name)) for name in chosen}
    chosen = names if names is not None else sorted(members)
    stacks = {stack: array_of(group, stack) for stack in {members[name][0] for name in chosen}}
    return {name: _tensor(folder, stacks[members[name][0]], members[name][1]) for name in chosen}


def mapped(folder: Path, name: str) -> Tensor:
    """The tensor `name` of a group, mapped into memory: a number is read when it is used, and the system may drop it
    again. What is changed in place is copied first; the file keeps its numbers.
    """
    return _as_stored(arrays.member(open_group(folder), name)[0], arrays.mapped(folder, name))


def lazy(folder: Path) -> dict[str, LazyTensor]:
    """The tensors that `read` gives, each read when it is needed."""
    group = open_group(folder)
    members = cast("Mapping[str, tuple[str, int]] | None", group.attrs.get(MEMBERS))
    found: dict[str, LazyTensor] = {}
    for name in sorted(group.array_keys() if members is None else members):
        array = array_of(group, name if members is None else members[name][0])
        shape = array.shape if members is None else array.shape[1:]
        dtype = _BY_NAME.get(str(array.attrs.get("dtype", ""))) or torch.from_numpy(np.empty(0, array.dtype)).dtype
        found[name] = LazyTensor(tuple(shape), dtype, partial(_one, folder, name))
    return found


def _one(folder: Path, name: str) -> Tensor:
    return read(folder, [name])[name]


def write_scratch(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` to one safetensors file: for the hundreds of short-lived units of a search.

    A Zarr group takes several times as long to write as the bytes of a small evaluation.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_with(folder / "scratch.safetensors", lambda path: save_file(contiguous, path))


def read_scratch(folder: Path) -> dict[str, Tensor]:
    """The tensors that `write_scratch` wrote (CPU), sorted by name."""
    return dict(sorted(load_file(folder / "scratch.safetensors").items()))


def _tensor(folder: Path, array: zarr.Array[Any], index: int | EllipsisType = ...) -> Tensor:
    return _as_stored(array, arrays.numbers_of(folder, array, index))


def _as_stored(array: zarr.Array[Any], numbers: npt.NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(numbers)
    dtype = _BY_NAME.get(str(array.attrs.get("dtype", "")))
    return tensor.view(dtype) if dtype is not None else tensor
