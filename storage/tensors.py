"""Named tensors of one unit, as a Zarr group that only that unit's worker writes.

bf16 has no Zarr type: it is stored as its uint16 bits with the attribute `dtype`. Arrays are one chunk each, not
compressed (activations do not compress), so a group's files are the same bytes whenever the tensors are.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import zarr
from torch import Tensor

_VIEWED = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8}
_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in _VIEWED}


def write(folder: Path, tensors: Mapping[str, Tensor], attributes: Mapping[str, Any] | None = None) -> None:
    """Write `tensors` (any device) and JSON `attributes` to a new group `<folder>/tensors.zarr`."""
    group = zarr.open_group(folder / "tensors.zarr", mode="w", attributes=dict(attributes or {}))
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        viewed = _VIEWED.get(plain.dtype)
        marks: dict[str, Any] = {"dtype": str(plain.dtype).removeprefix("torch.")} if viewed else {}
        data = (plain.view(viewed) if viewed else plain).numpy()
        chunks = tuple(max(1, n) for n in data.shape)
        array = group.create_array(
            name, shape=data.shape, dtype=data.dtype, chunks=chunks, compressors=None, attributes=marks,
            config={"write_empty_chunks": True},
        )  # fmt: skip
        array[...] = data


def read(folder: Path, names: list[str] | None = None) -> dict[str, Tensor]:
    """The tensors of `<folder>/tensors.zarr`, all of them or `names`."""
    group = _open(folder)
    return {name: _tensor(group[name]) for name in (names if names is not None else sorted(group.array_keys()))}


def attributes(folder: Path) -> dict[str, Any]:
    """The JSON attributes of `<folder>/tensors.zarr`."""
    return dict(_open(folder).attrs)


def _open(folder: Path) -> zarr.Group:
    return zarr.open_group(folder / "tensors.zarr", mode="r")


def _tensor(array: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(array[...].copy())
    viewed = _NAMES.get(array.attrs.get("dtype", ""))
    return tensor.view(viewed) if viewed is not None else tensor
