"""Activation scales calibrated by groups of timesteps, under the curvature of the loss (TQ-DiT, 2502.04056).

Minimised is E[dz^T diag((dL/dz)^2) dz], dz = x W^T - x_q W_q^T, over the scale of every weight row and of the inputs in
every group of steps in turn; scales are multiples of min-max in [.01, 1.2].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.grid import Grid, dequantize, fake_quantize_regions, quantize, static_codes

ROUNDS = 3
_MULTIPLES = torch.cat((torch.linspace(0.01, 1.2, 101, dtype=torch.float64), torch.ones(1, dtype=torch.float64)))
GELU_MINIMUM = -0.17004
"""The least value that GELU takes (and its tanh approximation, to 5e-5)."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """`grid` of the weight; `scale_G` and `zero_G` float32 of the inputs by group, zero as code of the value 0; the
    weighted output error relative to the output, and what it would be with one scale for all steps."""

    grid: Grid
    scale_G: Tensor
    zero_G: Tensor
    error: float
    single_error: float


def step_groups(steps: int, groups: int) -> list[int]:
    """The group of every step: `groups` runs of equal length, as nearly as may be (no more groups than steps)."""
    return [step * min(groups, steps) // steps for step in range(steps)]


def is_gelu_output(rows: Iterable[Tensor]) -> bool:
    """Whether the values are those that GELU gives: negative ones, and none below its least."""
    least = min(float(x.min()) for x in rows)
    return GELU_MINIMUM <= least < 0


def fake_quantize_static(x_NI: Tensor, qmax: float, scale: Tensor, zero: Tensor, *, regions: bool) -> Tensor:
    """`x_NI` on a calibrated grid and back, as the runtime does it."""
    if regions:
        return fake_quantize_regions(x_NI, qmax, scale)
    return static_codes(x_NI, qmax, scale, zero) * scale


def min_max_calibration(rows: Sequence[Tensor], start: Grid, *, bits: int, regions: bool) -> Calibration:
    """Every group's min-max, over `rows[g]` [n, in], and the weight's own grid: nothing is searched."""
    scale_G, zero_G = _stacked([_span(x, 2.0**bits - 1, regions) for x in rows])
    return Calibration(grid=start, scale_G=scale_G, zero_G=zero_G, error=math.nan, single_error=math.nan)


def calibrate(
    rows: Sequence[Tensor],
    w_OI: Tensor,
    curvature_GO: Tensor,
    start: Grid,
    *,
    bits: int,
    regions: bool,
    most: int = 1024,
) -> Calibration:
    """Scales of the weight `w_OI` (float32, `start` is its min-max grid by row) and of the inputs `rows[g]` [n, in].

    `curvature_GO` >= 0 weighs output channel o in group g. Starts from min-max of all rows; a round chooses the
    weight's scales for the rounded inputs, then the inputs' for the rounded weight, by the error over at most `most`
    rows, an even sample. A group's scale is never worse on them than the best that one scale for all groups could be.
    """
    qmax = 2.0**bits - 1
    spans, whole = [_span(x, qmax, regions) for x in rows], _span(torch.cat(list(rows)), qmax, regions)
    rows = [x[:: -(-len(x) * len(rows) // most)] for x in rows]
    outs = [x @ w_OI.T for x in rows]
    total = sum(float((z.double().square() * h).sum()) for z, h in zip(outs, curvature_GO, strict=True))
    grid, found, single_error, error = start, spans, 0.0, 0.0
    for _ in range(ROUNDS):
        grid = _weight_scales(rows, found, w_OI, curvature_GO, start, qmax, regions)
        held = dequantize(quantize(w_OI, grid.scale_OG, grid.zero_OG, grid.qmax), grid.scale_OG, grid.zero_OG)
        parts = list(zip(rows, outs, curvature_GO, strict=True))
        summed = torch.stack([_errors(x, z, held, h, _multiples(whole), qmax, regions) for x, z, h in parts]).sum(0)
        single_error, single = float(summed.min()), _multiples(whole)[int(summed.argmin())]
        found, error = [], 0.0
        for (x, z, h), span in zip(parts, spans, strict=True):
            candidates = [*_multiples(span), single]
            errors = _errors(x, z, held, h, candidates, qmax, regions)
            found.append(candidates[int(errors.argmin())])
            error += float(errors.min())
    scale_G, zero_G = _stacked(found)
    total = max(total, 1e-300)
    return Calibration(
        grid=grid, scale_G=scale_G, zero_G=zero_G, error=error / total, single_error=single_error / total
    )


def _stacked(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    scale, zero = (torch.stack([pair[i] for pair in pairs]).float() for i in range(2))
    return scale, zero


Pair = tuple[Tensor, Tensor]
"""Scale and zero of a grid, single numbers."""


def _span(x: Tensor, qmax: float, regions: bool) -> Pair:
    """Scale and zero of min-max."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    if regions:
        return (high / ((qmax + 1) / 2 - 1)).clamp(min=1e-12), torch.zeros(())
    scale = ((high - low) / qmax).clamp(min=1e-12)
    return scale, torch.round(-low / scale)


def _multiples(span: Pair) -> list[Pair]:
    return [((span[0] * float(m)).clamp(min=1e-12), span[1]) for m in _MULTIPLES]


def _errors(
    x: Tensor, z: Tensor, held_OI: Tensor, h_O: Tensor, candidates: Sequence[Pair], qmax: float, regions: bool
) -> Tensor:
    """The weighted error of the output with the inputs on every candidate, float64."""
    root = h_O.sqrt().to(z)
    wanted, held = z * root, (held_OI * root.unsqueeze(1)).T.contiguous()
    errors = []
    for scale, zero in candidates:
        delta = torch.addmm(wanted, fake_quantize_static(x, qmax, scale, zero, regions=regions), held, alpha=-1)
        errors.append(float(delta.square_().sum(dtype=torch.float64)))
    return torch.tensor(errors, dtype=torch.float64)


def _weight_scales(
    rows: Sequence[Tensor], found: Sequence[Pair], w_OI: Tensor, curvature_GO: Tensor, start: Grid, qmax: float,
    regions: bool,
) -> Grid:  # fmt: skip
    """Every row's multiple of its min-max scale: least error for inputs as they are rounded now.

    A row's own curvature does not move its choice, so groups count by the mean over output channels.
    """
    width = w_OI.shape[1]
    cross, gram = torch.zeros(2, width, width, dtype=torch.float64, device=w_OI.device)
    for x, (scale, zero), h in zip(rows, found, curvature_GO, strict=True):
        held = fake_quantize_static(x, qmax, scale, zero, regions=regions)
        weight = float(h.mean())
        cross += weight * (x.T @ held).double()
        gram += weight * (held.T @ held).double()
    wanted, gram32 = (w_OI.double() @ cross).float(), gram.float()
    best, least = start.scale_OG, torch.full((len(w_OI), 1), torch.inf, device=w_OI.device)
    for multiple in _MULTIPLES:
        scale = (start.scale_OG * float(multiple)).bfloat16().float().clamp(min=1e-30)
        values = dequantize(quantize(w_OI, scale, start.zero_OG, start.qmax), scale, start.zero_OG)
        error = ((values @ gram32) * values - 2 * wanted * values).sum(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return replace(start, scale_OG=best)
