"""Named tensors of one unit, as a Zarr group that only the unit's worker writes.

Zarr has no bf16: it is stored as its uint16 bits with the attribute `dtype`. Arrays are one chunk each and not
compressed (activations do not compress), so equal tensors give equal files. `adatsq_pipe.storage.arrays` reads the
same groups without torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any, cast

import numpy as np
import torch
import zarr
from safetensors.torch import load_file, save_file
from torch import Tensor

from adatsq_pipe.storage.arrays import GROUP, MEMBERS, array_of, open_group
from adatsq_pipe.storage.files import write_with
from adatsq_pipe.storage.fingerprint import Plain
from adatsq_pipe.storage.weights import LazyTensor

_BIT_TYPES = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8}
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in _BIT_TYPES}


def write(folder: Path, tensors: Mapping[str, Tensor], attributes: Mapping[str, Plain] | None = None) -> None:
    """Write `tensors` (on any device) and JSON `attributes` to a new group `<folder>/tensors.zarr`."""
    group = _new_group(folder, attributes or {})
    for name, tensor in tensors.items():
        _create(group, name, tensor, tuple(tensor.shape))


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
        stacked = torch.stack([tensors[name] for name in names])
        _create(group, stack, stacked, (1, *stacked.shape[1:]))


def _new_group(folder: Path, attributes: Mapping[str, Plain]) -> zarr.Group:
    return zarr.open_group(folder / GROUP, mode="w", attributes=cast("dict[str, Any]", dict(attributes)))


def _create(group: zarr.Group, name: str, tensor: Tensor, chunks: tuple[int, ...]) -> None:
    values = tensor.detach().cpu().contiguous()
    bit_type = _BIT_TYPES.get(values.dtype)
    data = (values.view(bit_type) if bit_type else values).numpy()
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=tuple(max(1, n) for n in chunks),
        compressors=None,
        attributes={"dtype": str(values.dtype).removeprefix("torch.")} if bit_type else {},
        config={"write_empty_chunks": True},
    )
    array[...] = data


def read(folder: Path, names: list[str] | None = None) -> dict[str, Tensor]:
    """The tensors of `<folder>/tensors.zarr` (CPU): `names` in their order, or all of them sorted by name."""
    group = open_group(folder)
    members = cast("Mapping[str, tuple[str, int]] | None", group.attrs.get(MEMBERS))
    if members is None:
        chosen = names if names is not None else sorted(group.array_keys())
        return {name: _tensor(array_of(group, name)) for name in chosen}
    chosen = names if names is not None else sorted(members)
    stacks = {stack: array_of(group, stack) for stack in {members[name][0] for name in chosen}}
    return {name: _tensor(stacks[members[name][0]], members[name][1]) for name in chosen}


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


def _tensor(array: zarr.Array[Any], index: int | EllipsisType = ...) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(np.array(array[index]))
    dtype = _BY_NAME.get(str(array.attrs.get("dtype", "")))
    return tensor.view(dtype) if dtype is not None else tensor
