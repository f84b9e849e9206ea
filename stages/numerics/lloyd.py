"""Lloyd-Max codebooks: the levels of least mean squared error for a standard normal variable (Max 1960, Lloyd 1982)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_ROUNDS = 20_000
_STILL = 1e-9


@lru_cache(maxsize=16)
def gaussian_codebook(bits: int) -> Tensor:
    """The 2^bits levels, rising, float64: each the mean of its cell, each cell's edge halfway between two levels."""
    normal = torch.distributions.Normal(
        torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64), validate_args=False
    )
    count = 2**bits
    levels: Tensor = 3**0.5 * normal.icdf((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    for _ in range(_ROUNDS):
        edges = torch.cat((torch.tensor([-torch.inf]), cell_edges(levels), torch.tensor([torch.inf])))
        density = torch.exp(normal.log_prob(edges))
        better = -density.diff() / normal.cdf(edges).diff()
        moved = (better - levels).abs().max()
        levels = better
        if moved < _STILL:
            break
    return (levels - levels.flip(0)) / 2


def cell_edges(levels: Tensor) -> Tensor:
    """The edges of the cells: halfway between neighbouring levels."""
    return (levels[1:] + levels[:-1]) / 2


def nearest_index(x: Tensor, levels: Tensor) -> Tensor:
    """Index of the level nearest to each value of `x`, int64."""
    return torch.bucketize(x, cell_edges(levels).to(x.dtype))
