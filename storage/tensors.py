"""Named tensors of one unit, as a Zarr group in one file that only the unit's worker writes (see `pack`).

Zarr has no bf16: it is stored as its uint16 bits with the attribute `dtype`. Arrays are not compressed (activations do
not compress). `adatsq_pipe.storage.arrays` reads the same groups without torch.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from adatsq_pipe.storage import arrays, pack, parts
from adatsq_pipe.storage.arrays import MEMBERS, array_of, open_group
from adatsq_pipe.storage.files import write_with
from adatsq_pipe.storage.fingerprint import Plain
from adatsq_pipe.storage.pack import PACK, Chunk
from adatsq_pipe.storage.parts import PARTS
from adatsq_pipe.storage.weights import LazyTensor

if TYPE_CHECKING:
    import numpy.typing as npt

_BIT_TYPES = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8}
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in _BIT_TYPES}


@dataclass(frozen=True)
class Stack:
    """Tensors of one shape and dtype, at least one, that become one array, in which they lie one after the other."""

    parts: Sequence[Tensor]


def write(
    folder: Path, tensors: Mapping[str, Tensor | LazyTensor | Stack], attributes: Mapping[str, Plain] | None = None
) -> None:
    """Write `tensors` (on any device) and JSON `attributes` as a new group in `folder`, an array of one chunk each.

    Lazy ones are loaded one after the other, and a stack is not copied. Raises ValueError for a stack whose parts have
    several shapes or dtypes.
    """
    shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]()
    for name, tensor in tensors.items():
        if isinstance(tensor, Stack):
            first = tensor.parts[0]
            if any((part.shape, part.dtype) != (first.shape, first.dtype) for part in tensor.parts):
                raise ValueError(f"{name} has parts of several shapes or dtypes")
            shapes[name] = first.dtype, (len(tensor.parts), *first.shape)
        else:
            shapes[name] = tensor.dtype, tuple(tensor.shape)
    documents = _documents({name: (dtype, shape, shape) for name, (dtype, shape) in shapes.items()}, attributes or {})
    chunks = [_chunk(_key(name, len(shapes[name][1])), tensor) for name, tensor in tensors.items()]
    (folder / PARTS).unlink(missing_ok=True)
    pack.write(folder / PACK, documents, [chunk for chunk in chunks if chunk.size], lambda key, data: None)


def write_stacked(folder: Path, tensors: Mapping[str, Tensor], attributes: Mapping[str, Plain] | None = None) -> None:
    """`write` for many tensors of few shapes, of which a reader takes a few: those of one shape and dtype become one
    array, a chunk each, and every tensor has a digest of its own (see `parts`).

    A Zarr array costs about a millisecond, a chunk far less. Tensors are still read by name: the group's attribute
    `members` maps a name to [array name, index].
    """
    groups: dict[tuple[torch.dtype, torch.Size], list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.dtype, tensor.shape), []).append(name)
    stacks = {f"stack{i}": (dtype, tuple(shape), names) for i, ((dtype, shape), names) in enumerate(groups.items())}
    members: Plain = {name: [stack, i] for stack, (*_, names) in stacks.items() for i, name in enumerate(names)}
    documents = _documents(
        {stack: (dtype, (len(names), *shape), (1, *shape)) for stack, (dtype, shape, names) in stacks.items()},
        {**(attributes or {}), MEMBERS: members},
    )
    named = {
        _key(stack, 1 + len(shape), i): name
        for stack, (_, shape, names) in stacks.items()
        for i, name in enumerate(names)
        if tensors[name].numel()
    }
    hashes = {key: hashlib.sha256() for key in named}
    chunks = (_chunk(key, tensors[name]) for key, name in named.items())
    spans = pack.write(folder / PACK, documents, chunks, lambda key, data: hashes[key].update(data))
    parts.write(
        folder,
        {name: spans[key] for key, name in named.items()},
        {name: hashes[key].hexdigest() for key, name in named.items()},
    )


def _key(array: str, dimensions: int, index: int = 0) -> str:
    """The key of a chunk that is whole but for the first dimension."""
    return "/".join([array, "c", *(["0"] * dimensions if not index else [str(index), *["0"] * (dimensions - 1)])])


def _chunk(key: str, tensor: Tensor | LazyTensor | Stack) -> Chunk:
    """A tensor's numbers as a chunk, made as they are written."""
    several = tensor.parts if isinstance(tensor, Stack) else [tensor]

    def buffers() -> Iterator[memoryview]:
        for part in several:
            yield _bytes(part.load() if isinstance(part, LazyTensor) else part)

    return Chunk(key, sum(part.nbytes for part in several), buffers())


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's numbers as a chunk has them: in order, the lowest byte first."""
    numbers = _numbers(tensor)
    return numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data


def _documents(
    arrays: Mapping[str, tuple[torch.dtype, tuple[int, ...], tuple[int, ...]]], attributes: Mapping[str, Plain]
) -> dict[str, bytes]:
    """The metadata documents of a group with arrays of these dtypes, shapes and shapes of chunks, by key."""
    documents = dict[str, Buffer]()
    group = zarr.open_group(MemoryStore(documents), mode="w", attributes=cast("dict[str, Any]", dict(attributes)))
    for name, (dtype, shape, chunks) in arrays.items():
        _create(group, name, dtype, shape, chunks)
    return {key: documents[key].to_bytes() for key in sorted(documents)}


def _numbers(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor's numbers as an array of the type in which they are stored; no copy of what lies in memory in order."""
    values = tensor.detach().cpu().contiguous()
    bit_type = _BIT_TYPES.get(values.dtype)
    found: npt.NDArray[Any] = (values.view(bit_type) if bit_type else values).numpy()
    return found


def _create(group: zarr.Group, name: str, dtype: torch.dtype, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    """Describe a new array for tensors of that dtype."""
    group.create_array(
        name,
        shape=shape,
        dtype=_numbers(torch.empty(0, dtype=dtype)).dtype,
        chunks=tuple(max(1, n) for n in chunks),
        compressors=None,
        attributes={"dtype": str(dtype).removeprefix("torch.")} if dtype in _BIT_TYPES else {},
    )


def read(folder: Path, names: list[str] | None = None) -> dict[str, Tensor]:
    """The tensors of the group in `folder` (CPU): `names` in their order, or all of them sorted by name."""
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
    return _as_stored(arrays.member(folder, name)[0], arrays.mapped(folder, name))


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
