"""RoundedInput: an input of a quantized linear after rounding, computed in chunks of rows where that is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 2**18
"""Elements rounded at once on a CPU: as many as stay in a core's cache from one operation to the next."""


class RoundedInput(NamedTuple):
    """The input that the codes are multiplied with: `values`, times `scale` if there is one."""

    values: Tensor
    """[..., in], in the dtype of the input: rounded values, or integer codes if there is a scale."""
    scale: Tensor | None
    """float32 [..., 1], one for each token, or [] if one was calibrated."""
    unrounded: Tensor | None
    """[..., in], what was rounded: the input of the low-rank branch. None without a branch."""


def round_by_rows(round_rows: Callable[[Tensor], RoundedInput], x: Tensor) -> RoundedInput:
    """`round_rows(x)` for a function that treats every row of `x` [..., in] alike.

    A large `x` on a CPU is cut into chunks of rows, which gives the same values sooner.
    """
    if x.numel() <= 2 * _CHUNK or x.device.type != "cpu" or torch.compiler.is_compiling():
        return round_rows(x)
    rows, step = x.reshape(-1, x.shape[-1]), max(1, _CHUNK // x.shape[-1])
    parts: list[Tensor | None] = []
    for start in range(0, len(rows), step):
        chunk = round_rows(rows[start : start + step])
        parts = parts or [_room_for(part, len(rows)) for part in chunk]
        for whole, part in zip(parts, chunk, strict=True):
            if whole is not None and part is not None and part.ndim:
                whole[start : start + step] = part
    values, scale, unrounded = (
        part if part is None or part.ndim == 0 else part.reshape(*x.shape[:-1], part.shape[-1]) for part in parts
    )
    assert values is not None
    return RoundedInput(values, scale, unrounded)


def _room_for(part: Tensor | None, rows: int) -> Tensor | None:
    """Room for the whole of which `part` is a chunk; None and single numbers are the same in every chunk."""
    return part if part is None or part.ndim == 0 else part.new_empty(rows, part.shape[-1])
