"""Micro-batches: after running out of memory a worker sends fewer samples at a time through its denoiser.

The batch size affects the last bits of the results, so a batch is split only if it does not fit, and the unit's marker
records the split. A worker keeps its reduced size while it is open, because the units of a stage are alike.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adatsq_pipe.stages.base.errors import StageError


class OutOfMemory(StageError):
    """The weights, or the weights and a single sample, do not fit on the device."""


@dataclass
class MicroBatch:
    """At most `size` samples at a time (None: all); `largest_batch` is the largest of the current unit.

    Samples are rows of a denoiser call: where guidance puts both halves in one call, a caption has two.
    """

    size: int | None = None
    largest_batch: int = 0

    def begin(self) -> None:
        """Start a unit: reset its largest batch and its peak memory."""
        self.largest_batch = 0
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Most bytes of GPU memory that were allocated at once since the unit began; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0

    def ranges(self, count: int) -> list[tuple[int, int]]:
        """`count` samples in parts (start, stop) that fit."""
        self.largest_batch = max(self.largest_batch, count)
        size = count if self.size is None else min(self.size, count)
        return [(start, min(start + size, count)) for start in range(0, count, max(size, 1))]

    def reduction(self) -> dict[str, int] | None:
        """How the unit's largest batch was split, {"from": samples, "to": samples}; None if it was not."""
        if self.size is None or self.size >= self.largest_batch:
            return None
        return {"from": self.largest_batch, "to": self.size}

    def halve(self) -> bool:
        """Halve the size; False if it was one sample already."""
        present = self.largest_batch if self.size is None else min(self.size, self.largest_batch)
        if present > 1:
            self.size = (present + 1) // 2
        return present > 1


class OutOfMemoryBackoff:
    """Base of workers that run a denoiser. `micro` is passed to the denoiser and to `unit_of`."""

    def __init__(self) -> None:
        self.micro = MicroBatch()

    def recover(self, key: str, error: BaseException) -> bool:
        """Halve the micro-batch if `error` is torch's out-of-memory error; True means that the unit can be retried.

        Raises OutOfMemory if a single sample does not fit.
        """
        if not isinstance(error, torch.OutOfMemoryError):
            return False
        if not self.micro.halve():
            raise OutOfMemory(
                f"unit {key!r} does not fit with one sample at a time ({out_of_memory_message(error)}); give it a GPU "
                "with more memory or more of one (cluster.gpus_per_worker), set compute.dtype=bfloat16 or "
                "fisher.gradient_checkpointing=true, or ask for smaller pictures in [model.call]"
            ) from error
        traceback.clear_frames(error.__traceback__)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True


def out_of_memory_message(error: BaseException) -> str:
    """The error's text without torch's advice on fragmentation, at most 300 characters."""
    return " ".join(str(error).split(" If reserved but unallocated", 1)[0].split())[:300] or type(error).__name__


def cut(value: Any, of: int, start: int, stop: int) -> Any:
    """The samples `start` to `stop` of a denoiser's arguments for `of` samples.

    Tensors [of, ...] and lists of `of` items are cut; values that all samples share are returned unchanged.
    """
    if isinstance(value, torch.Tensor):
        return value[start:stop] if value.dim() and value.shape[0] == of else value
    if isinstance(value, dict):
        return {key: cut(item, of, start, stop) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(cut(item, of, start, stop) for item in value)
    if isinstance(value, list):
        batches = all(isinstance(x, torch.Tensor) and x.dim() and x.shape[0] == of for x in value)
        return value[start:stop] if len(value) == of and not batches else [cut(x, of, start, stop) for x in value]
    return value


def joined(parts: list[Any], sizes: list[int]) -> Any:
    """Join the outputs of parts of a batch. Raises StageError for tensors that are not [samples, ...]."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return _joined_tensors(parts, sizes)
    if isinstance(first, dict):
        items = {key: joined([part[key] for part in parts], sizes) for key in first}
        return items if type(first) is dict else type(first)(**items)
    if isinstance(first, list) and all(len(part) == size for part, size in zip(parts, sizes, strict=True)):
        return [item for part in parts for item in part]
    if isinstance(first, list | tuple):
        return type(first)(joined(list(items), sizes) for items in zip(*parts, strict=True))
    return first


def _joined_tensors(parts: list[Tensor], sizes: list[int]) -> Tensor:
    for part, size in zip(parts, sizes, strict=True):
        if not part.dim() or part.shape[0] != size:
            raise StageError(
                f"memory ran out, and a batch cannot be cut: the denoiser returns a tensor of shape "
                f"{list(part.shape)} for {size} samples; set data.batch and evaluate.batch to 1"
            )
    return torch.cat(parts)
