"""Tokens on dynamic grids whose range is narrowed by a ratio, one for every bin of timesteps.

Source: Timestep-aware SVDQuant-GPTQ (2605.27003): a clipping ratio of each layer's activations for every bin of
timesteps. Its abstract does not say which ratios are tried, or by what; ours: those of RATIOS, by the output error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RATIOS = tuple(1 - step / 20 for step in range(13))
"""Ratios that are tried, from no clipping down to 0.4."""


def fake_quantize_clipped(
    x_NI: Tensor, qmax: Tensor | float, ratio: Tensor | float, *, symmetric: bool, group: int = 0
) -> Tensor:
    """As `grid.fake_quantize_tokens`, of which every token's range (or every group's) is multiplied by `ratio`, in
    (0, 1]; what is outside gets the outermost code. `x_NI` [..., in]; dtype kept."""
    x = x_NI.float()
    if group:
        x = x.unflatten(-1, (-1, group))
    if symmetric:
        high = x.abs().amax(-1, keepdim=True) * ratio
        scale = high.div((qmax - 1) / 2).clamp_(min=1e-12)
        floor, levels = -torch.ones_like(scale) * ((qmax - 1) / 2), qmax - 1
    else:
        low, high = x.amin(-1, keepdim=True).clamp_(max=0) * ratio, x.amax(-1, keepdim=True).clamp_(min=0) * ratio
        scale = high.sub(low).div_(qmax).clamp_(min=1e-12)
        floor, levels = low.div(scale).round_(), qmax
    codes = torch.minimum(torch.maximum(torch.div(x, scale).round_(), floor), floor + levels)
    return codes.mul_(scale).flatten(x_NI.ndim - 1).to(x_NI.dtype)


def best_ratios(
    rows: Sequence[Tensor], w_OI: Tensor, values_OI: Tensor, *, bits: int, symmetric: bool, group: int = 0
) -> tuple[Tensor, Tensor]:
    """(ratio, squared output error over the unclipped one), float32 [bins] each, of every bin's inputs.

    `rows[g]` (float32 [n, in]) are inputs of bin g; `w_OI` is the weight that the rounded input is meant for and
    `values_OI` what its codes stand for. The error is that of x W^T - x_q V^T. Of equals the larger ratio.
    """
    found = []
    for x in rows:
        target = x @ w_OI.T
        errors = [
            float(
                torch.addmm(
                    target,
                    fake_quantize_clipped(x, 2.0**bits - 1, ratio, symmetric=symmetric, group=group),
                    values_OI.T,
                    alpha=-1,
                )
                .square_()
                .sum(dtype=torch.float64)
            )
            for ratio in RATIOS
        ]
        best = min(range(len(RATIOS)), key=lambda i: errors[i])
        found.append((RATIOS[best], errors[best] / max(errors[0], 1e-300)))
    ratios, gains = (torch.tensor([pair[i] for pair in found], dtype=torch.float32) for i in range(2))
    return ratios, gains
