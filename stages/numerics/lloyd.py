"""Lloyd-Max codebooks: the levels of least mean squared error for a standard normal variable.

Source: Max, "Quantizing for minimum distortion" (1960), eq. 1-2; Lloyd, "Least squares quantization in PCM" (1982),
method I. OrbitQuant (2607.02461) uses them for weights and activations.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_ROUNDS = 20_000
_TOLERANCE = 1e-9


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
        centroids = -density.diff() / normal.cdf(edges).diff()
        change = (centroids - levels).abs().max()
        levels = centroids
        if change < _TOLERANCE:
            break
    return (levels - levels.flip(0)) / 2


def cell_edges(levels: Tensor) -> Tensor:
    """The edges between the cells of `levels` [n]: halfway between neighbours, [n - 1]."""
    return (levels[1:] + levels[:-1]) / 2


def nearest_index(x: Tensor, levels: Tensor) -> Tensor:
    """Index of the level nearest to each value of `x`, int64 in its shape; `levels` [n] must rise."""
    return torch.bucketize(x, cell_edges(levels).to(x.dtype))
