"""Files of weights, one tensor at a time: tensors that are read when they are needed, and shards written from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.files import write_text, write_with

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

    The tensors of one shard are in memory at a time. Equal tensors give equal bytes, whatever their order.
    """
    from huggingface_hub import split_state_dict_into_shards_factory  # `status` does without

    plan = split_state_dict_into_shards_factory(
        {name: tensors[name] for name in sorted(tensors)},
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=f"{STEM}{{suffix}}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in plan.filename_to_tensors.items():
        _write_shard(folder / file, {name: tensors[name] for name in names})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_text(folder / f"{STEM}.safetensors.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_shard(path: Path, tensors: Weights) -> None:
    """Its tensors are freed when it returns, before those of the next shard are read."""
    from safetensors.torch import save_file  # imports torch, which `status` does without

    shard = {n: (t.load() if isinstance(t, LazyTensor) else t).contiguous() for n, t in tensors.items()}
    write_with(path, lambda path: save_file(shard, path, metadata={"format": "pt"}))


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
