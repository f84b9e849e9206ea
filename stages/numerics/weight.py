"""One weight, in the basis of its codes, turned into codes: on a uniform grid, beside a branch, or on a codebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics import lloyd, lowrank
from adatsq_pipe.stages.numerics.gptq import Solution, weighted_error
from adatsq_pipe.stages.numerics.grid import Grid, dequantize, quantize

Solver = Callable[[Tensor, Tensor, Grid], Solution]


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """`tensors` as they are stored (codes uint8 [out, in]); the output error, that of rounding to nearest, damping."""

    tensors: dict[str, Tensor]
    error: float
    nearest_error: float
    damping: float


def on_grid(
    w_OI: Tensor,
    gram_II: Tensor,
    grid_of: Callable[[Tensor], Grid],
    *,
    rank: int = 0,
    rounds: int = 1,
    solver: Solver | None = None,
) -> QuantizedWeight:
    """`w_OI` (float32) on the uniform grid `grid_of` finds for it: to nearest, or by `solver`; with `rank` only what is
    left of it beside a branch (see `lowrank.alternate`)."""

    def rounded(w: Tensor) -> tuple[Grid, Tensor, Tensor]:
        grid = grid_of(w)
        scale, zero = grid.columns(w.shape[1])
        codes = quantize(w, scale, zero, grid.qmax)
        return grid, codes, dequantize(codes, scale, zero)

    left, low, parts = w_OI, torch.zeros_like(w_OI), dict[str, Tensor]()
    if rank:
        branch = lowrank.alternate(w_OI, gram_II, lambda r: rounded(r)[2], rank=rank, rounds=rounds)
        parts = {"up": branch.up_OR, "down": branch.down_RI}
        left = (w_OI.double() - branch.up_OR.double() @ branch.down_RI.double()).float()
        low = w_OI - left
    grid, codes, values = rounded(left)
    nearest_error = error = weighted_error(w_OI, low + values, gram_II)
    damping = 0.0
    if solver is not None:
        solved = solver(left, gram_II, grid)
        codes, damping, error = solved.codes_OI, solved.damping, solved.error
        if rank:
            error = weighted_error(w_OI, low + dequantize(codes, *grid.columns(w_OI.shape[1])), gram_II)
    tensors = {
        "codes": codes.to(torch.uint8),
        "scale": grid.scale_OG.bfloat16(),
        "zero": grid.zero_OG.to(torch.uint8),
        **parts,
    }
    return QuantizedWeight(tensors=tensors, error=error, nearest_error=nearest_error, damping=damping)


def on_codebook(w_OI: Tensor, gram_II: Tensor, *, bits: int) -> QuantizedWeight:
    """Every row of `w_OI`, divided by its root mean square, on the Lloyd-Max levels of a Gaussian (OrbitQuant)."""
    book = lloyd.gaussian_codebook(bits).to(w_OI)
    scale = w_OI.square().mean(1, keepdim=True).sqrt().bfloat16()
    unit = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    codes = lloyd.nearest_index(w_OI / unit, book)
    error = weighted_error(w_OI, book[codes] * scale.float(), gram_II)
    tensors = {"codes": codes.to(torch.uint8), "scale": scale, "book": book.float()}
    return QuantizedWeight(tensors=tensors, error=error, nearest_error=error, damping=0.0)
