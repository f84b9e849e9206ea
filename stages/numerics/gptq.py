"""GPTQ: rounding a weight column by column, each error fed forward to the columns not yet rounded.

Source: GPTQ (2210.17323, alg. 1), with act-order and static groups as its authors' code has them. Deliberately
absent: dynamic groups, lazy batches across layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.grid import Grid

BLOCK = 128
DAMPING_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class Solution:
    """`codes_OI` uint8, the damping that was needed (a ratio of the mean diagonal), and tr(dW H dW^T) / tr(W H W^T)."""

    codes_OI: Tensor
    damping: float
    error: float


def weighted_error(w_OI: Tensor, q_OI: Tensor, gram_II: Tensor) -> float:
    """Relative output error of `q_OI` for `w_OI` under the inputs' Gram matrix."""
    gram = gram_II.double()
    delta, w = (w_OI - q_OI).double(), w_OI.double()
    return float(((delta @ gram) * delta).sum() / ((w @ gram) * w).sum().clamp(min=1e-300))


def inverse_factor(gram_II: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor of the inverse of the damped `gram_II` (float64), and the damping used.

    Damping starts at `damping` times the mean diagonal and grows tenfold while the matrix is not positive definite.
    Raises ValueError if that never helps.
    """
    mean = gram_II.diagonal().mean().clamp(min=1e-30)
    used = damping
    for _ in range(DAMPING_TRIES):
        damped = gram_II.clone()
        damped.diagonal().add_(used * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped  # a matrix of FLUX's widest input weighs 1.9 GB
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            del lower
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            del inverse
            if not failed:
                return upper, used
        used = max(used * 10, 1e-6)
    raise ValueError(f"Gram matrix stayed singular up to a damping of {used:g} of its mean diagonal")


def solve(w_OI: Tensor, gram_II: Tensor, grid: Grid, *, damping: float, act_order: bool) -> Solution:
    """Codes of `w_OI` [out, in] on `grid` that keep `x W^T` for inputs with Gram matrix `gram_II` (float64).

    Columns whose inputs are always zero are rounded to nearest. With `act_order` columns are taken by falling Gram
    diagonal; the grid's groups stay those of the original order (static groups).
    """
    width = w_OI.shape[1]
    scale, zero = (part.double() for part in grid.columns(width))
    gram = gram_II.double().clone()
    dead = gram.diagonal() == 0
    gram.diagonal()[dead] = gram.diagonal().mean().clamp(min=1e-30)
    order = torch.argsort(gram.diagonal(), descending=True, stable=True) if act_order else torch.arange(width)
    gram = gram[order.unsqueeze(1), order]
    factor, used = inverse_factor(gram, damping)
    del gram
    w = w_OI.double()[:, order]
    scale, zero = scale[:, order], zero[:, order]
    codes = torch.empty_like(w)
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = torch.zeros_like(w[:, start:stop])
        for i in range(start, stop):
            s, z = scale[:, i], zero[:, i]
            code = (torch.round(w[:, i] / s) + z).clamp_(0, grid.qmax)
            codes[:, i] = code
            error_O = (w[:, i] - (code - z) * s) / factor[i, i]
            errors[:, i - start] = error_O
            w[:, i + 1 : stop] -= error_O.unsqueeze(1) * factor[i, i + 1 : stop]
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    values = (codes - zero) * scale
    back = torch.argsort(order)
    error = weighted_error(w_OI, values[:, back], gram_II)
    return Solution(codes_OI=codes[:, back].to(torch.uint8), damping=used, error=error)
