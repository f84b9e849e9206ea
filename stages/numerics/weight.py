"""Quantizes one weight, in the basis of its codes: on a uniform grid, beside a low-rank branch, or on a codebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics import float4, lloyd, lowrank
from adatsq_pipe.stages.numerics.gptq import Solution, for_products, squared_output
from adatsq_pipe.stages.numerics.grid import Grid, dequantize, quantize

Solver = Callable[[Tensor, Grid], Solution]
"""(w_OI, grid) -> Solution, e.g. `gptq.solve` with the factor of the inputs' Gram matrix."""


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """A quantized weight."""

    tensors: dict[str, Tensor]
    """As they are stored: codes uint8 [out, in]; scale bfloat16 and zero uint8 [out, groups], or scale bfloat16
    [out, 1] and book float32 [2^bits]; up [out, rank] and down [rank, in] of a branch."""
    error: float
    """As of `gptq.weighted_error`: the squared output error relative to the squared output."""
    damping: float
    """The solver's damping; 0 without one."""


def on_grid(
    w_OI: Tensor,
    gram_II: Tensor,
    grid_of: Callable[[Tensor], Grid],
    *,
    rank: int = 0,
    rounds: int = 1,
    solver: Solver | None = None,
) -> QuantizedWeight:
    """`w_OI` (float32 [out, in]) on the uniform grid that `grid_of` finds for it, to nearest or by `solver`.

    With `rank`, the grid holds only the residual W - L beside a branch L (see `lowrank.alternate`). `gram_II` float64.
    """
    residual, branch_tensors = w_OI, dict[str, Tensor]()
    if rank:
        branch = lowrank.alternate(w_OI, gram_II, lambda r: _to_nearest(r, grid_of(r))[1], rank=rank, rounds=rounds)
        branch_tensors = {"up": branch.up_OR, "down": branch.down_RI}
        residual = (w_OI.double() - branch.up_OR.double() @ branch.down_RI.double()).float()
    grid, gram = grid_of(residual), for_products(gram_II)
    whole, damping = max(squared_output(w_OI, gram), 1e-300), 0.0
    if solver is None:
        rounded, values = _to_nearest(residual, grid)
        codes, error = rounded.to(torch.uint8), squared_output(residual - values, gram) / whole
    else:
        solution = solver(residual, grid)
        codes, damping, error = solution.codes_OI, solution.damping, solution.squared_error / whole
    tensors = {
        "codes": codes,
        "scale": grid.scale_OG.bfloat16(),
        "zero": grid.zero_OG.to(torch.uint8),
        **branch_tensors,
    }
    return QuantizedWeight(tensors=tensors, error=error, damping=damping)


def _to_nearest(w_OI: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(codes, values), float32 [out, in] each."""
    scale, zero = grid.columns(w_OI.shape[1])
    codes = quantize(w_OI, scale, zero, grid.qmax)
    return codes, dequantize(codes, scale, zero)


def judged_by(coded: QuantizedWeight, w_OI: Tensor, gram_II: Tensor) -> QuantizedWeight:
    """A weight on a uniform grid, with the error that it has as a stand-in for `w_OI` (float32 [out, in])."""
    error = squared_output(w_OI - values_of(coded, w_OI.shape[1]), gram_II) / max(squared_output(w_OI, gram_II), 1e-300)
    return replace(coded, error=error)


def values_of(coded: QuantizedWeight, width: int) -> Tensor:
    """The dequantized values of a weight on a uniform grid, float32 [out, in]; `width` is `in`."""
    columns = (coded.tensors[name].float() for name in ("scale", "zero"))
    scale, zero = (part.repeat_interleave(width // part.shape[1], 1) for part in columns)
    return dequantize(coded.tensors["codes"], scale, zero)


def beside_branch(coded: QuantizedWeight, w_OI: Tensor) -> Tensor:
    """What the codes of a weight stand for: `w_OI` (float32 [out, in]) without its low-rank branch, if it has one."""
    if "up" not in coded.tensors:
        return w_OI
    return (w_OI.double() - coded.tensors["up"].double() @ coded.tensors["down"].double()).float()


def on_codebook(w_OI: Tensor, gram_II: Tensor, *, bits: int) -> QuantizedWeight:
    """Every row of `w_OI` (float32 [out, in]) on `lloyd.gaussian_codebook(bits)` times its root mean square.

    Source: OrbitQuant (2607.02461). A row of zeros gets the scale 0.
    """
    book = lloyd.gaussian_codebook(bits).to(w_OI)
    scale = w_OI.square().mean(1, keepdim=True).sqrt().bfloat16()
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    codes = lloyd.nearest_index(w_OI / divisor, book)
    error = squared_output(w_OI - book[codes] * scale.float(), gram_II) / max(squared_output(w_OI, gram_II), 1e-300)
    tensors = {"codes": codes.to(torch.uint8), "scale": scale, "book": book.float()}
    return QuantizedWeight(tensors=tensors, error=error, damping=0.0)


def on_floats(w_OI: Tensor, gram_II: Tensor, kind: float4.Float4) -> QuantizedWeight:
    """`w_OI` (float32 [out, in]) in 4-bit floats with scales of blocks and rows."""
    row, blocks = float4.block_scales(w_OI, kind)
    codes = float4.codes_of(w_OI, row, blocks, kind)
    error = squared_output(w_OI - float4.fake_quantize_floats(w_OI, kind), gram_II) / max(
        squared_output(w_OI, gram_II), 1e-300
    )
    tensors = {
        "codes": codes,
        "scale": row.bfloat16(),
        "block_scale": blocks,
        "book": float4.float4_codebook().to(w_OI),
    }
    return QuantizedWeight(tensors=tensors, error=error, damping=0.0)
