"""Uniform grids: weights are quantized offline, activations on the fly.

A grid of b bits has 2^b levels: codes 0 .. qmax = 2^b - 1, and value = (code - zero) * scale. A symmetric grid has the
fixed zero 2^(b-1). Weight grids are per output channel, or per group of input channels (`weight_grid` finds them).
`fake_quantize_*` round to a grid and back. Source: TQ-DiT (2502.04056) for static grids and regions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.lloyd import nearest_index


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Grid of a weight: `scale_OG` and `zero_OG` float32 [out, groups], groups of equal width along the inputs."""

    bits: int
    scale_OG: Tensor
    zero_OG: Tensor

    @property
    def qmax(self) -> int:
        """The largest code, 2^bits - 1."""
        return int(2**self.bits - 1)

    def columns(self, width: int) -> tuple[Tensor, Tensor]:
        """(scale, zero) of every entry of the weight, [out, width]; `width` is the input width."""
        if self.scale_OG.shape[1] == 1:
            return self.scale_OG.expand(-1, width), self.zero_OG.expand(-1, width)
        repeat = width // self.scale_OG.shape[1]
        return self.scale_OG.repeat_interleave(repeat, 1), self.zero_OG.repeat_interleave(repeat, 1)


def quantize(w: Tensor, scale: Tensor, zero: Tensor, qmax: int) -> Tensor:
    """Nearest codes of `w` (float, of its dtype, whole numbers in 0 .. qmax); `scale` and `zero` broadcast."""
    return torch.div(w, scale).round_().add_(zero).clamp_(0, qmax)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Values (codes - zero) * scale, in the dtype of `scale`; `scale` and `zero` broadcast."""
    return torch.sub(codes.to(scale.dtype), zero).mul_(scale)


def fake_quantize_tokens(x_NI: Tensor, qmax: Tensor | float, *, symmetric: bool, group: int = 0) -> Tensor:
    """Round every token (row) of `x_NI` [..., in] to its own dynamic grid and back; dtype kept.

    `qmax` is 2^bits - 1, as a number or a tensor that broadcasts over tokens. Asymmetric grids span [min, max] of
    the token with 0 included; symmetric ones [-max, max] with 2^(bits-1) - 1 steps a side. With `group` every so many
    channels of a token have a grid of their own.
    """
    codes, scale = _token_codes(x_NI, qmax, symmetric, group)
    return codes.mul_(scale).flatten(x_NI.ndim - 1).to(x_NI.dtype)


def token_errors(x_NI: Tensor, widths: Sequence[int], *, symmetric: bool, group: int = 0) -> Iterator[Tensor]:
    """`x_NI` less `fake_quantize_tokens` of it at each of `widths` bits, float32 [..., in], one after the other, each
    in the memory of the one before. Ranges are found once."""
    x = x_NI.float()
    if group:
        x = x.unflatten(-1, (-1, group))
    ranges, found = _token_ranges(x, symmetric), torch.empty_like(x)
    for bits in widths:
        codes, scale = _codes_in(x, ranges, 2.0**bits - 1, out=found)
        yield torch.addcmul(x, codes, scale, value=-1, out=found).flatten(x_NI.ndim - 1)


def token_codes(x_NI: Tensor, qmax: Tensor | float, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The grids of `fake_quantize_tokens` as (codes [..., in] in the dtype of `x_NI`, scale float32 [..., 1]).

    Codes are whole numbers from -2^bits to 2^bits, zero where the token is: exact in bfloat16 up to eight bits.
    """
    codes, scale = _token_codes(x_NI, qmax, symmetric, 0)
    return codes.to(x_NI.dtype), scale


def static_codes(x_NI: Tensor, qmax: Tensor | float, scale: Tensor, zero: Tensor) -> Tensor:
    """Codes less zero, -zero .. qmax - zero, of `x_NI` [..., in] on one calibrated grid, in the dtype of `x_NI`.

    `scale` and `zero` are float32 scalars. The values are codes times `scale`.
    """
    floor = -zero
    codes = torch.div(x_NI.float(), scale).round_()
    return torch.minimum(torch.maximum(codes, floor), floor + qmax).to(x_NI.dtype)


_FINE = 0.17
"""GELU's values reach down to -.17."""


def fake_quantize_regions(x_NI: Tensor, qmax: Tensor | float, scale: Tensor) -> Tensor:
    """Round `x_NI` [..., in] in two regions of 2^(b-1) codes each; dtype kept (TQ-DiT, multi-region quantization).

    Values from 0 up take steps of `scale` (a float32 scalar), those below 0 the fixed step .17 / 2^(b-1).
    """
    half = (qmax + 1) / 2
    x, fine = x_NI.float(), _FINE / half
    above = torch.div(x, scale).round_().clamp_(min=0).clamp_(max=half - 1).mul_(scale)
    below = (x / fine).round_().clamp_(max=0).clamp_(min=-half).mul_(fine)
    return torch.where(x < 0, below, above).to(x_NI.dtype)


def fake_quantize_to_codebook(x_NI: Tensor, levels: Tensor) -> Tensor:
    """Round every token (row) of `x_NI` [..., in] to the nearest of `levels` times its root mean square; dtype kept.

    `levels` [2^bits] rises, e.g. `lloyd.gaussian_codebook` (OrbitQuant, 2607.02461).
    """
    x = x_NI.float()
    size = x.square().mean(-1, keepdim=True).sqrt_().clamp_(min=1e-12)
    return levels.to(x)[nearest_index(x / size, levels)].mul_(size).to(x_NI.dtype)


def _token_codes(x_NI: Tensor, qmax: Tensor | float, symmetric: bool, group: int) -> tuple[Tensor, Tensor]:
    """float32 codes and scales, [..., in] and [..., 1]; with `group` [..., in / group, group] and [..., 1]."""
    x = x_NI.float()
    if group:
        x = x.unflatten(-1, (-1, group))
    return _codes_in(x, _token_ranges(x, symmetric), qmax)


def _token_ranges(x: Tensor, symmetric: bool) -> tuple[Tensor, ...]:
    """(largest magnitude,) of every row where grids are symmetric, else (lowest, highest) with 0 included."""
    if symmetric:
        return (x.abs().amax(-1, keepdim=True),)
    return x.amin(-1, keepdim=True).clamp_(max=0), x.amax(-1, keepdim=True).clamp_(min=0)


def _codes_in(
    x: Tensor, ranges: tuple[Tensor, ...], qmax: Tensor | float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes, in `out` if there is one, and scales of rows with these ranges."""
    if len(ranges) == 1:
        scale = ranges[0].div((qmax - 1) / 2).clamp_(min=1e-12)
        return torch.div(x, scale, out=out).round_(), scale
    low, high = ranges
    scale = high.sub(low).div_(qmax).clamp_(min=1e-12)
    ceiling = low.div(scale).round_().add_(qmax)
    return torch.div(x, scale, out=out).round_().clamp_(max=ceiling), scale


def rows_of(tensor: Tensor, part: slice) -> Tensor:
    """`tensor[part]`, without the cost of a view when `part` covers all rows."""
    return tensor if part.start == 0 and part.stop >= tensor.shape[0] else tensor[part]
