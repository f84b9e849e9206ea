"""Named tensors of one unit, as a Zarr group that only that unit's worker writes.

bf16 has no Zarr type: it is stored as its uint16 bits with the attribute `dtype`. Arrays are one chunk each, not
compressed (activations do not compress), so a group's files are the same bytes whenever the tensors are. Who wants
plain numbers and no torch reads them with `adatsq_pipe.storage.arrays`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from safetensors.torch import load_file, save_file
from torch import Tensor

from adatsq_pipe.storage.arrays import GROUP, MEMBERS, open_group

_VIEWED = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8}
_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in _VIEWED}


def write(folder: Path, tensors: Mapping[str, Tensor], attributes: Mapping[str, Any] | None = None) -> None:
    """Write `tensors` (any device) and JSON `attributes` to a new group `<folder>/tensors.zarr`."""
    group = zarr.open_group(folder / GROUP, mode="w", attributes=dict(attributes or {}))
    for name, tensor in tensors.items():
        _create(group, name, tensor, tuple(tensor.shape))


def write_stacked(folder: Path, tensors: Mapping[str, Tensor], attributes: Mapping[str, Any] | None = None) -> None:
    """As `write`, for many tensors of few shapes: those alike are one array, one chunk each.

    An array costs Zarr more than a millisecond, a chunk far less. Read by name as ever: the group's attribute
    `members` says where a tensor lies, as [array, place].
    """
    alike: dict[tuple[torch.dtype, torch.Size], list[str]] = {}
    for name, tensor in tensors.items():
        alike.setdefault((tensor.dtype, tensor.shape), []).append(name)
    stacks = {f"stack{i}": names for i, names in enumerate(alike.values())}
    members: Any = {name: [array, place] for array, names in stacks.items() for place, name in enumerate(names)}
    group = zarr.open_group(folder / GROUP, mode="w", attributes={**(attributes or {}), MEMBERS: members})
    for array, names in stacks.items():
        stacked = torch.stack([tensors[name] for name in names])
        _create(group, array, stacked, (1, *stacked.shape[1:]))


def _create(group: zarr.Group, name: str, tensor: Tensor, chunks: tuple[int, ...]) -> None:
    plain = tensor.detach().cpu().contiguous()
    viewed = _VIEWED.get(plain.dtype)
    marks: dict[str, Any] = {"dtype": str(plain.dtype).removeprefix("torch.")} if viewed else {}
    data = (plain.view(viewed) if viewed else plain).numpy()
    array = group.create_array(
        name, shape=data.shape, dtype=data.dtype, chunks=tuple(max(1, n) for n in chunks), compressors=None,
        attributes=marks, config={"write_empty_chunks": True},
    )  # fmt: skip
    array[...] = data


def read(folder: Path, names: list[str] | None = None) -> dict[str, Tensor]:
    """The tensors of `<folder>/tensors.zarr`, all of them or `names`."""
    group = open_group(folder)
    members: Any = group.attrs.get(MEMBERS)
    if members is None:
        return {name: _tensor(group[name]) for name in (names if names is not None else sorted(group.array_keys()))}
    chosen = names if names is not None else sorted(members)
    stacks = {array: group[array] for array in {members[name][0] for name in chosen}}
    return {name: _tensor(stacks[members[name][0]], members[name][1]) for name in chosen}


def write_scratch(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """As `write`, in one safetensors file: for units that come by the hundred and are soon discarded.

    A Zarr group costs several times the milliseconds of a small evaluation's bytes.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, folder / "scratch.safetensors")


def read_scratch(folder: Path) -> dict[str, Tensor]:
    """What `write_scratch` wrote."""
    return dict(sorted(load_file(folder / "scratch.safetensors").items()))


def _tensor(array: Any, place: Any = ...) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(np.array(array[place]))
    viewed = _NAMES.get(array.attrs.get("dtype", ""))
    return tensor.view(viewed) if viewed is not None else tensor
