"""Weights of smaller magnitude and nearly the same output, which a grid of few bits then covers in finer steps.

Source: MagR (2406.00800): every row minimises 1/2 |X (v - w)|^2 + a |v|_inf, by proximal
gradient steps. The proximal operator of the largest magnitude takes away the projection onto an l1 ball (Moreau).
"""

from __future__ import annotations

import torch
from torch import Tensor

_POWER_ROUNDS = 50
"""Power iterations for the largest eigenvalue, which need not be exact: it is taken a hundredth larger."""


def smaller_weight(w_OI: Tensor, gram_II: Tensor, *, penalty: float, rounds: int = 20) -> Tensor:
    """The weight `w_OI` [out, in] after `rounds` proximal gradient steps, in its dtype.

    `gram_II` [in, in] is X^T X. `penalty` is a share: a row's `a` is it times the row's l1 norm and the largest
    eigenvalue of `gram_II`, so that 0 keeps the weight and 1 takes an uncorrelated input's to 0.
    """
    if not penalty:
        return w_OI
    start, gram = w_OI.double(), gram_II.double()
    largest = _largest_eigenvalue(gram)
    if not largest > 0:
        return w_OI
    gram = gram / largest
    radius = penalty * start.abs().sum(1)
    v = start
    for _ in range(rounds):
        v = without_largest(v - (v - start) @ gram, radius)
    return v.to(w_OI.dtype)


def without_largest(v_OI: Tensor, radius_O: Tensor) -> Tensor:
    """The proximal operator of radius * |v|_inf for every row: magnitudes above a level are cut to it, so that what is
    cut adds up to the row's radius; a row whose l1 norm is at most that becomes 0."""
    return v_OI - _onto_l1_ball(v_OI, radius_O)


def _onto_l1_ball(v_OI: Tensor, radius_O: Tensor) -> Tensor:
    """The nearest point of l1 norm at most `radius_O` [out] to every row (Duchi et al. 2008, fig. 1)."""
    magnitude = v_OI.abs()
    falling = magnitude.sort(1, descending=True).values
    excess = falling.cumsum(1) - radius_O.unsqueeze(1)
    count = torch.arange(1, v_OI.shape[1] + 1, device=v_OI.device, dtype=v_OI.dtype)
    kept = (falling * count > excess).sum(1, keepdim=True).clamp(min=1)
    level = (excess.gather(1, kept - 1) / kept).clamp(min=0)
    return v_OI.sign() * (magnitude - level).clamp(min=0)


def _largest_eigenvalue(gram_II: Tensor) -> float:
    """An upper estimate, by power iteration from a vector of ones plus the diagonal."""
    vector = gram_II.diagonal() + 1
    for _ in range(_POWER_ROUNDS):
        vector = gram_II @ (vector / vector.norm().clamp(min=1e-300))
    return float(vector.norm()) * 1.01
