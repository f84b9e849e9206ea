"""GPTQ: rounds a weight column by column and feeds each rounding error forward to the columns not yet rounded.

Source: GPTQ (2210.17323), algorithm 1, in its letters: W the weight, H the Hessian of the layer's squared output error,
Hinv the upper Cholesky factor of H^-1. Act-order, static groups and percdamp (here `damping`) follow the authors' code.
H is the Gram matrix X^T X of the inputs: the paper's factor 2 scales H and the damping alike and changes no code.
Left out: groups whose grid is fitted during the solve, and batching across layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.grid import Grid

BLOCK = 128
"""Columns per lazy batch update (GPTQ, sec. 3.3, step 2)."""
DAMPING_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A weight's codes and how they were found."""

    codes_OI: Tensor
    """uint8 [out, in], in the weight's own column order."""
    damping: float
    """The damping that made H positive definite, as a share of its mean diagonal."""
    error: float
    """`weighted_error` of the codes' values."""


def weighted_error(W_OI: Tensor, Q_OI: Tensor, H_II: Tensor) -> float:
    """tr((W - Q) H (W - Q)^T) / tr(W H W^T), in float64: the output error of Q relative to the output of W.

    `W_OI` and `Q_OI` are float [out, in], `H_II` is the Gram matrix [in, in] of the inputs.
    """
    H, W = H_II.double(), W_OI.double()
    delta = (W_OI - Q_OI).double()
    return float(((delta @ H) * delta).sum() / ((W @ H) * W).sum().clamp(min=1e-300))


def inverse_cholesky(H_II: Tensor, damping: float) -> tuple[Tensor, float]:
    """(Hinv, damping): the upper Cholesky factor of the inverse of the damped `H_II` (float64), and the damping used.

    Damping adds `damping` times the mean of H's diagonal to the diagonal, and grows tenfold while H is not positive
    definite. Raises ValueError if that never helps.
    """
    mean = H_II.diagonal().mean().clamp(min=1e-30)
    used = damping
    for _ in range(DAMPING_TRIES):
        damped = H_II.clone()
        damped.diagonal().add_(used * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped  # a matrix of FLUX's widest input takes 1.9 GB
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            del lower
            Hinv, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            del inverse
            if not failed:
                return Hinv, used
        used = max(used * 10, 1e-6)
    raise ValueError(f"Gram matrix stayed singular up to a damping of {used:g} of its mean diagonal")


def solve(W_OI: Tensor, H_II: Tensor, grid: Grid, *, damping: float, act_order: bool) -> Solution:
    """Codes on `grid` of `W_OI` (float [out, in]) that preserve X W^T for inputs of Gram matrix `H_II` (float64).

    Columns whose inputs are always zero are rounded to nearest. With `act_order`, columns are taken by falling diagonal
    of H; the grid's groups stay those of the original order (static groups). Raises ValueError if `H_II` cannot be
    factored.
    """
    width = W_OI.shape[1]
    scale, zero = (part.double() for part in grid.columns(width))
    H = H_II.double().clone()
    dead = H.diagonal() == 0
    H.diagonal()[dead] = H.diagonal().mean().clamp(min=1e-30)
    perm = torch.argsort(H.diagonal(), descending=True, stable=True) if act_order else torch.arange(width)
    invperm = torch.argsort(perm)
    H = H[perm.unsqueeze(1), perm]
    Hinv, used = inverse_cholesky(H, damping)
    del H
    W = W_OI.double()[:, perm]
    scale, zero = scale[:, perm], zero[:, perm]
    codes = torch.empty_like(W)
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = torch.zeros_like(W[:, start:stop])
        for i in range(start, stop):
            s, z = scale[:, i], zero[:, i]
            code = (torch.round(W[:, i] / s) + z).clamp_(0, grid.qmax)
            codes[:, i] = code
            error_O = (W[:, i] - (code - z) * s) / Hinv[i, i]
            errors[:, i - start] = error_O
            W[:, i + 1 : stop] -= error_O.unsqueeze(1) * Hinv[i, i + 1 : stop]
        W[:, stop:] -= errors @ Hinv[start:stop, stop:]
    Q = ((codes - zero) * scale)[:, invperm]
    error = weighted_error(W_OI, Q, H_II)
    return Solution(codes_OI=codes[:, invperm].to(torch.uint8), damping=used, error=error)
