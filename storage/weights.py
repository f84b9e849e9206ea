"""Files of weights, one tensor at a time: tensors that are read when they are needed, and shards written from them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.files import write_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SHARD_BYTES = 5 * 10**9
"""Bytes of tensors in one file at most (a larger tensor has a file of its own), as in diffusers' `save_pretrained`."""
STEM = "diffusion_pytorch_model"


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose size is known, and whose numbers `load` reads or computes (on the CPU) whenever it is called."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel() * self.dtype.itemsize


Weights = Mapping[str, "Tensor | LazyTensor"]
"""Tensors by name, in memory or not."""


def write_weights(folder: Path, tensors: Weights) -> None:
    """Write `tensors` to `folder` as diffusers reads them: one file, or shards of SHARD_BYTES with their index.

    One tensor is in memory at a time. Equal tensors give equal bytes, whatever their order.
    """
    from huggingface_hub import split_state_dict_into_shards_factory  # `status` does without

    plan = split_state_dict_into_shards_factory(
        {name: tensors[name] for name in sorted(tensors)},
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=f"{STEM}{{suffix}}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in plan.filename_to_tensors.items():
        write_safetensors(folder / file, {name: tensors[name] for name in names})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_text(folder / f"{STEM}.safetensors.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")


DTYPES = (
    "uint64 U64", "int64 I64", "float64 F64", "complex64 C64", "float32 F32", "uint32 U32", "int32 I32",
    "bfloat16 BF16", "float16 F16", "uint16 U16", "int16 I16", "float8_e5m2fnuz F8_E5M2FNUZ",
    "float8_e4m3fnuz F8_E4M3FNUZ", "float8_e8m0fnu F8_E8M0", "float8_e4m3fn F8_E4M3", "float8_e5m2 F8_E5M2",
    "int8 I8", "uint8 U8", "bool BOOL",
)  # fmt: skip
"""torch's dtypes and safetensors' names of them, in the order in which safetensors puts tensors into a file."""
_RANKS = {f"torch.{line.split()[0]}": (rank, line.split()[1]) for rank, line in enumerate(DTYPES)}


LINE = 64
"""Bytes of a cache line, at which torch's own tensors begin."""


def write_safetensors(path: Path, tensors: Weights, *, aligned: bool = False) -> None:
    """Write `tensors` to a safetensors file: byte for byte as `save_file` does, one tensor in memory at a time.

    `save_file` takes tensors that are in memory, all of them. With `aligned`, tensors of whole cache lines come first
    and begin at one, so that what computes with the mapped file adds up in the same order as with tensors of its own;
    safetensors has no gaps, so that tensors of other sizes follow as they come. Raises StorageError for a dtype without
    a name in DTYPES.
    """
    for name, tensor in tensors.items():
        if str(tensor.dtype) not in _RANKS:
            raise StorageError(f"{name} has the dtype {tensor.dtype}, which safetensors files do not hold")
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0

    def place(name: str) -> tuple[bool, int, bytes]:
        tensor = tensors[name]
        return aligned and tensor.nbytes % LINE != 0, _RANKS[str(tensor.dtype)][0], name.encode()

    order = sorted(tensors, key=place)
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        kind = _RANKS[str(tensor.dtype)][1]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % LINE if aligned else -len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes(tensors[name]))


def _bytes(tensor: Tensor | LazyTensor) -> memoryview:
    """The numbers of a tensor as a safetensors file holds them."""
    import torch  # `status` does without

    loaded = tensor.load() if isinstance(tensor, LazyTensor) else tensor
    if (tuple(loaded.shape), loaded.dtype) != (tuple(tensor.shape), tensor.dtype):
        raise StorageError(f"a tensor of {tensor.dtype} {list(tensor.shape)} is {loaded.dtype} {list(loaded.shape)}")
    flat = loaded.detach().cpu().contiguous().reshape(-1)
    values = flat.view(torch.uint8).numpy()
    return (values if sys.byteorder == "little" else values.reshape(-1, flat.itemsize)[:, ::-1].copy()).data


def lazy_tensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file of weights. Raises StorageError, here or in `load`, if the file does not load.

    Every `load` maps the file into memory for itself, so that the pages of a tensor are given back with the tensor.
    """
    if path.suffix != ".bin":
        with open_safetensors(path, "pt") as file:
            views = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (maps the file, reads nothing)
            return {n: LazyTensor(tuple(v.shape), v.dtype, partial(_read, path, n)) for n, v in views.items()}
    if is_zipfile(path):
        views = load_bin(path, "meta")
        return {n: LazyTensor(tuple(v.shape), v.dtype, partial(_read_bin, path, n)) for n, v in views.items()}
    views = load_bin(path, "cpu")  # files from before torch 1.6 cannot be mapped
    return {n: LazyTensor(tuple(v.shape), v.dtype, partial(views.__getitem__, n)) for n, v in views.items()}


def _read(path: Path, name: str) -> Tensor:
    with open_safetensors(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _read_bin(path: Path, name: str) -> Tensor:
    return load_bin(path, "cpu")[name]


def load_bin(path: Path, device: str) -> dict[str, Tensor]:
    """The tensors of a file in torch's own format, as diffusers loads it: tensors alone, no code is run.

    They are mapped, not read, where the file can be. Raises StorageError if it does not load.
    """
    import torch  # `status` does without

    try:
        stored = torch.load(path, map_location=device, weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # whatever zip, pickle and torch raise for a damaged file
        why = str(error).strip().partition("\n")[0]
        raise StorageError(f"{path} does not load ({why}); copy the model folder again") from None
    return {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}


@contextmanager
def open_safetensors(path: Path, framework: str = "numpy") -> Iterator[safe_open]:
    """A safetensors file, opened without reading its tensors. Raises StorageError if it is damaged."""
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path} does not load as safetensors ({error}); copy the model folder again") from None
