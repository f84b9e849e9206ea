"""Four-bit floats in blocks that share a scale: NVFP4 and MXFP4, as Blackwell's tensor cores read them.

A value is E2M1 (a sign and 0, .5, 1, 1.5, 2, 3, 4 or 6) times the scale of its block. MXFP4: blocks of 32, scales are
powers of two (OCP Microscaling Formats 1.0). NVFP4: blocks of 16, scales are E4M3 floats times one more
scale. Ours: that one is a power of two, of every row (output channel or token) and not of the whole tensor, so that all
products are exact in bfloat16.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.lloyd import nearest_index

Float4 = Literal["nvfp4", "mxfp4"]
BLOCKS: dict[Float4, int] = {"nvfp4": 16, "mxfp4": 32}
"""Channels that share a scale."""
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LARGEST, _LARGEST_E4M3 = 6.0, 448.0
_E8M0_BIAS = 127


def float4_codebook() -> Tensor:
    """The 16 values of E2M1, rising, float32; minus zero and zero are two of them."""
    return torch.tensor([-value for value in reversed(_MAGNITUDES)] + list(_MAGNITUDES))


def block_scales(x: Tensor, kind: Float4) -> tuple[Tensor, Tensor]:
    """(scale of every row, float32 [..., 1]; scale of every block, uint8 [..., in / block]) of `x` [..., in].

    The bytes are E4M3 (nvfp4) or exponents with the bias 127 (mxfp4), whose rows have the scale 1.
    """
    peak = x.float().unflatten(-1, (-1, BLOCKS[kind])).abs().amax(-1)
    if kind == "mxfp4":
        exponent = torch.frexp(peak)[1] - 1 - 2  # the largest power of two is at most the peak; E2M1 reaches 2^2
        exponent = torch.where(peak > 0, exponent, torch.zeros_like(exponent))
        return torch.ones_like(peak[..., :1]), (exponent + _E8M0_BIAS).clamp(0, 254).to(torch.uint8)
    whole = peak.amax(-1, keepdim=True) / (_LARGEST * _LARGEST_E4M3)
    row = torch.where(whole > 0, torch.exp2(torch.ceil(torch.log2(whole.clamp(min=1e-38)))), torch.ones_like(whole))
    return row, (peak / (_LARGEST * row)).to(torch.float8_e4m3fn).view(torch.uint8)


def block_values(scales: Tensor, kind: Float4, dtype: torch.dtype) -> Tensor:
    """The scales that the bytes of `block_scales` stand for, in `dtype`, which holds them exactly."""
    if kind == "mxfp4":
        return torch.exp2(scales.float() - _E8M0_BIAS).to(dtype)
    return scales.view(torch.float8_e4m3fn).to(dtype)


def codes_of(x: Tensor, row: Tensor, scales: Tensor, kind: Float4) -> Tensor:
    """Index into `float4_codebook` of every value of `x` [..., in], uint8, under the scales of `block_scales`."""
    size = (block_values(scales, kind, torch.float32) * row).unsqueeze(-1)
    size = torch.where(size > 0, size, torch.ones_like(size))
    nearest = _nearest(x.float().unflatten(-1, (-1, BLOCKS[kind])) / size)
    return nearest_index(nearest, float4_codebook().to(x.device)).flatten(-2).to(torch.uint8)


def _nearest(x: Tensor) -> Tensor:
    """The nearest value of E2M1; of two equally near the one with the even mantissa (IEEE 754, round to nearest)."""
    step = torch.exp2(torch.frexp(x)[1].sub(1).clamp(0, 2) - 1.0)
    nearest: Tensor = (x / step).round_().mul_(step).clamp_(-_LARGEST, _LARGEST)
    return nearest


def fake_quantize_floats(x: Tensor, kind: Float4) -> Tensor:
    """`x` [..., in] rounded to the format, every row with its own scales; dtype kept."""
    row, scales = block_scales(x, kind)
    size = (block_values(scales, kind, torch.float32) * row).unsqueeze(-1)
    values = float4_codebook().to(x.device)[codes_of(x, row, scales, kind).long()]
    rounded: Tensor = values.unflatten(-1, (-1, BLOCKS[kind])) * size
    return rounded.flatten(-2).to(x.dtype)
