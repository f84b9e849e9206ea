"""Shifts: vectors that are subtracted from an input's channels, so that every channel lies around zero.

Sources. HTG (2503.06930): z_t = (max X_t + min X_t) / 2 by channel, groups of adjacent timesteps by agglomerative
clustering of z_t, a group's shift the mean of its z_t. TaQ-DiT (2411.14172), its authors' code: one shift for all
timesteps that follows the midpoints of batches with a momentum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def midpoint(x_NI: Tensor) -> Tensor:
    """Half way between the least and the largest value of every channel of `x_NI` [n, in], float64 [in]."""
    low, high = torch.aminmax(x_NI, dim=0)
    return (low.double() + high.double()) / 2


def adjacent_groups(z_TI: Tensor, groups: int) -> list[int]:
    """The group of every step: each step starts alone, and the two adjacent groups whose means of `z_TI` [steps, in]
    are nearest become one, until `groups` (at least 1) are left. Of equal distances the earlier pair."""
    sums, sizes = list(z_TI.double()), [1] * len(z_TI)
    while len(sums) > max(groups, 1):
        means = torch.stack([total / size for total, size in zip(sums, sizes, strict=True)])
        first = int((means[1:] - means[:-1]).square().sum(1).argmin())
        sums[first : first + 2] = [sums[first] + sums[first + 1]]
        sizes[first : first + 2] = [sizes[first] + sizes[first + 1]]
    return [group for group, size in enumerate(sizes) for _ in range(size)]


def group_means(z_TI: Tensor, place: Sequence[int]) -> Tensor:
    """The mean of `z_TI` [steps, in] over the steps of each group, float64 [groups, in]; `place` has a step's group."""
    index = torch.tensor(list(place), device=z_TI.device)
    return torch.stack([z_TI[index == group].double().mean(0) for group in range(max(place) + 1)])


def following(start_I: Tensor, midpoints_BI: Tensor, momentum: float) -> Tensor:
    """`start_I` [in] after every row of `midpoints_BI` [batches, in]: momentum z + (1 - momentum) midpoint, float64."""
    z = start_I.double()
    for each in midpoints_BI.double():
        z = momentum * z + (1 - momentum) * each
    return z
