"""Weights alone to 8 or 4 bits, to nearest: for models whose activations are not rounded, such as text encoders."""

from __future__ import annotations

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.grid import dequantize, quantize
from adatsq_pipe.stages.numerics.weight_grid import weight_grid

CLIPPED = 4
"""Bits up to which the clipping ratio is searched for; of more bits a range loses next to nothing."""


def round_weight(w_OI: Tensor, *, bits: int, group: int) -> dict[str, Tensor]:
    """`w_OI` [out, in] on an asymmetric grid for each `group` inputs of a row (0: the row), to nearest.

    Returns codes uint8 [out, in], scale bfloat16 and zero uint8 [out, groups]; weight = (code - zero) scale. Scales are
    rounded up to bfloat16 before the codes are found, so that a range is never cut by that. Raises ValueError if the
    weight holds a number that is not finite, or if `group` does not divide its width.
    """
    w = w_OI.float()
    if not bool(torch.isfinite(w).all()):
        raise ValueError("it holds numbers that are not finite")
    width = w.shape[1]
    grid = weight_grid(w, bits=bits, group=group, symmetric=False, clip=bits <= CLIPPED)
    scale = _up_to_bfloat16(grid.scale_OG)
    zero = torch.round(grid.zero_OG * grid.scale_OG / scale)
    repeat = width // scale.shape[1]
    codes = quantize(w, scale.repeat_interleave(repeat, 1), zero.repeat_interleave(repeat, 1), grid.qmax)
    return {"codes": codes.to(torch.uint8), "scale": scale.bfloat16(), "zero": zero.to(torch.uint8)}


def rounded_weight(codes_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor) -> Tensor:
    """The weight [out, in] that codes (uint8) stand for, in the dtype of `scale_OG`; `zero_OG` is uint8."""
    out, width = codes_OI.shape
    groups = scale_OG.shape[1]
    values = dequantize(
        codes_OI.view(out, groups, width // groups), scale_OG.unsqueeze(2), zero_OG.to(scale_OG.dtype).unsqueeze(2)
    )
    return values.view(out, width)


def _up_to_bfloat16(positive: Tensor) -> Tensor:
    """The least numbers that bfloat16 holds and that are not below `positive` (float32), in float32."""
    bits = positive.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) & -0x10000).view(torch.float32)
