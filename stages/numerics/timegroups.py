"""Activation scales calibrated per group of timesteps, under the curvature of the loss.

Source: TQ-DiT (2502.04056), Hessian-guided optimization and time grouping. It minimises E[dz^T diag((dL/dz)^2) dz],
dz = x W^T - x_q W_q^T, over the scale of every weight row and of the inputs of every group of steps in turn; scales are
multiples of min-max in [.01, 1.2].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.grid import Grid, dequantize, fake_quantize_regions, quantize, static_codes

ROUNDS = 3
"""Alternations between the weight's scales and the inputs'."""
_MULTIPLES = torch.cat((torch.linspace(0.01, 1.2, 101, dtype=torch.float64), torch.ones(1, dtype=torch.float64)))
GELU_MINIMUM = -0.17005
"""The least value of GELU (-0.16997) and of its tanh approximation (-0.170041, -0.170044 in float16), rounded down."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Grids of a weight and of its inputs."""

    grid: Grid
    """Of the weight, by row."""
    scale_G: Tensor
    """float32 [groups], of the inputs in every group of steps."""
    zero_G: Tensor
    """float32 [groups], the code of the value 0."""
    error: float
    """Weighted output error, relative to the weighted output; NaN if nothing was searched."""
    single_error: float
    """The same with the best single input scale for all steps."""


def step_groups(steps: int, groups: int) -> list[int]:
    """The group of every step: `groups` runs of steps (at most `steps`), whose lengths differ by at most one."""
    return [step * min(groups, steps) // steps for step in range(steps)]


def is_gelu_output(rows: Iterable[Tensor]) -> bool:
    """Whether `rows`, tensors of any shape, look like outputs of GELU: some negative, none below its minimum."""
    least = min(float(x.min()) for x in rows)
    return GELU_MINIMUM <= least < 0


def fake_quantize_static(x_NI: Tensor, qmax: float, scale: Tensor, zero: Tensor, *, regions: bool) -> Tensor:
    """`x_NI` [n, in] on a calibrated grid and back, as the runtime does it; `scale` and `zero` are float32 scalars."""
    if regions:
        return fake_quantize_regions(x_NI, qmax, scale)
    return static_codes(x_NI, qmax, scale, zero) * scale


def min_max_calibration(rows: Sequence[Tensor], start: Grid, *, bits: int, regions: bool) -> Calibration:
    """The min-max grid of every group of steps, over `rows[g]` [n, in], and the weight's grid `start` as it is."""
    scale_G, zero_G = _stack([_span(x, 2.0**bits - 1, regions) for x in rows])
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
    """Scales of the weight `w_OI` (float32 [out, in], `start` is its min-max grid by row) and of its inputs.

    `rows[g]` (float32 [n, in]) are inputs of group g, `curvature_GO` (float64 [groups, out], >= 0) weighs the squared
    error of an output channel there. A round chooses the weight's scales for the quantized inputs, then the inputs'
    for the quantized weight, by the error over an even sample of at most `most` rows. On that sample no group is worse
    off than with the best single scale for all groups.
    """
    qmax = 2.0**bits - 1
    spans, whole = [_span(x, qmax, regions) for x in rows], _span(torch.cat(list(rows)), qmax, regions)
    rows = [x[:: -(-len(x) * len(rows) // most)] for x in rows]
    outs = [x @ w_OI.T for x in rows]
    total = sum(float((z.double().square() * h).sum()) for z, h in zip(outs, curvature_GO, strict=True))
    grid, chosen, single_error, error = start, spans, 0.0, 0.0
    for _ in range(ROUNDS):
        grid = _weight_scales(rows, chosen, w_OI, curvature_GO, start, qmax, regions)
        wq_OI = dequantize(quantize(w_OI, grid.scale_OG, grid.zero_OG, grid.qmax), grid.scale_OG, grid.zero_OG)
        parts = list(zip(rows, outs, curvature_GO, strict=True))
        summed = torch.stack([_errors(x, z, wq_OI, h, _multiples(whole), qmax, regions) for x, z, h in parts]).sum(0)
        single_error, single = float(summed.min()), _multiples(whole)[int(summed.argmin())]
        chosen, error = [], 0.0
        for (x, z, h), span in zip(parts, spans, strict=True):
            candidates = [*_multiples(span), single]
            errors = _errors(x, z, wq_OI, h, candidates, qmax, regions)
            chosen.append(candidates[int(errors.argmin())])
            error += float(errors.min())
    scale_G, zero_G = _stack(chosen)
    total = max(total, 1e-300)
    return Calibration(
        grid=grid, scale_G=scale_G, zero_G=zero_G, error=error / total, single_error=single_error / total
    )


def _stack(pairs: Sequence[ScaleZero]) -> tuple[Tensor, Tensor]:
    scale, zero = (torch.stack([pair[i] for pair in pairs]).float() for i in range(2))
    return scale, zero


ScaleZero = tuple[Tensor, Tensor]
"""Scale and zero of a grid, float32 scalars."""


def _span(x: Tensor, qmax: float, regions: bool) -> ScaleZero:
    """Scale and zero of min-max."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    if regions:
        return (high / ((qmax + 1) / 2 - 1)).clamp(min=1e-12), torch.zeros(())
    scale = ((high - low) / qmax).clamp(min=1e-12)
    return scale, torch.round(-low / scale)


def _multiples(span: ScaleZero) -> list[ScaleZero]:
    return [((span[0] * float(m)).clamp(min=1e-12), span[1]) for m in _MULTIPLES]


def _errors(
    x_NI: Tensor,
    z_NO: Tensor,
    wq_OI: Tensor,
    curvature_O: Tensor,
    candidates: Sequence[ScaleZero],
    qmax: float,
    regions: bool,
) -> Tensor:
    """The weighted squared error to `z_NO` of the output, with the inputs on every candidate, float64 [candidates]."""
    root = curvature_O.sqrt().to(z_NO)
    target, weight = z_NO * root, (wq_OI * root.unsqueeze(1)).T.contiguous()
    errors = []
    for scale, zero in candidates:
        delta = torch.addmm(target, fake_quantize_static(x_NI, qmax, scale, zero, regions=regions), weight, alpha=-1)
        errors.append(float(delta.square_().sum(dtype=torch.float64)))
    return torch.tensor(errors, dtype=torch.float64)


def _weight_scales(
    rows: Sequence[Tensor],
    input_grids: Sequence[ScaleZero],
    w_OI: Tensor,
    curvature_GO: Tensor,
    start: Grid,
    qmax: float,
    regions: bool,
) -> Grid:
    """Every row's multiple of its min-max scale: least error for inputs on `input_grids`.

    A group counts by the mean of its curvature over output channels, so all rows share one Gram matrix.
    """
    width = w_OI.shape[1]
    cross, gram = torch.zeros(2, width, width, dtype=torch.float64, device=w_OI.device)
    for x, (scale, zero), curvature_O in zip(rows, input_grids, curvature_GO, strict=True):
        xq = fake_quantize_static(x, qmax, scale, zero, regions=regions)
        weight = float(curvature_O.mean())
        cross += weight * (x.T @ xq).double()
        gram += weight * (xq.T @ xq).double()
    target, gram32 = (w_OI.double() @ cross).float(), gram.float()
    best, least = start.scale_OG, torch.full((len(w_OI), 1), torch.inf, device=w_OI.device)
    for multiple in _MULTIPLES:
        scale = (start.scale_OG * float(multiple)).bfloat16().float().clamp(min=1e-30)
        values = dequantize(quantize(w_OI, scale, start.zero_OG, start.qmax), scale, start.zero_OG)
        error = ((values @ gram32) * values - 2 * target * values).sum(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return replace(start, scale_OG=best)
