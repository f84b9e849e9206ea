"""The rotations that a layer's captured inputs call for (recipe.transform = "greedy")."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics import greedy


def rotations_of(rows: Iterable[Tensor], source: str, *, block: int, steps: int) -> dict[str, Tensor]:
    """`rotations` float32 [2, block, block] and `between` int32 [in] for `rows` [n, in] of the input `source`, or of
    what is rotated in its place, on their device. Equal rows of an input have equal rotations."""
    x = torch.cat([part.float() for part in rows])
    rotations, between = greedy.dual_rotation(x, block=block, steps=steps, seed=zlib.crc32(source.encode()))
    return {"rotations": rotations, "between": between}
