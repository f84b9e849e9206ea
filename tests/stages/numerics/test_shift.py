"""Shifts of channels: midpoints, groups of adjacent steps and momentum, against loops over lists of numbers."""

from __future__ import annotations

import itertools

import pytest
import torch

from adatsq_pipe.stages.numerics import shift


def _distance(a: list[list[float]], b: list[list[float]]) -> float:
    """Squared distance of the means of two lists of vectors."""
    means = [[sum(column) / len(part) for column in zip(*part, strict=True)] for part in (a, b)]
    return sum((p - q) ** 2 for p, q in zip(*means, strict=True))


def _slow_groups(z: list[list[float]], groups: int) -> list[int]:
    """Agglomerative clustering over all pairs of clusters of which the second goes on where the first ends."""
    clusters = [[step] for step in range(len(z))]
    while len(clusters) > groups:
        pairs = [(a, b) for a, b in itertools.permutations(clusters, 2) if max(a) + 1 == min(b)]
        first, second = min(pairs, key=lambda pair: (_distance(*([z[t] for t in c] for c in pair)), pair[0][0]))
        clusters = [c for c in clusters if c not in (first, second)] + [first + second]
    ordered = sorted(clusters)
    return [next(g for g, cluster in enumerate(ordered) if step in cluster) for step in range(len(z))]


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 8, 11, 12, 40])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_are_those_of_a_slow_clustering_of_adjacent_steps(groups: int, seed: int) -> None:
    drift = torch.linspace(0, 3, 12).square().unsqueeze(1)
    z = drift + 0.5 * torch.randn(12, 4, generator=torch.Generator().manual_seed(seed))
    found = shift.adjacent_groups(z, groups)
    assert found == _slow_groups(z.double().tolist(), groups)
    assert found == sorted(found) and max(found) + 1 == min(groups, 12)


def test_a_jump_parts_the_steps_and_equal_distances_join_the_earlier_ones() -> None:
    jump = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1]])
    assert shift.adjacent_groups(jump, 2) == [0, 0, 0, 1, 1]
    assert shift.adjacent_groups(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), 3) == [0, 0, 1, 2]
    assert shift.adjacent_groups(torch.ones(4, 2), 0) == [0, 0, 0, 0]


def test_steps_that_are_alike_but_apart_stay_apart() -> None:
    """Clustering without the rule of adjacency would join the first and the last."""
    assert shift.adjacent_groups(torch.tensor([[0.0], [5.0], [0.0]]), 2) == [0, 0, 1]


def test_a_midpoint_puts_a_channel_s_extremes_at_equal_distance_from_zero() -> None:
    x = torch.tensor([[-1.0, 4.0, 0.0], [3.0, 6.0, -0.5], [0.0, 5.5, -0.1]])
    z = shift.midpoint(x)
    assert z.tolist() == [1.0, 5.0, -0.25]
    moved = x.double() - z
    assert torch.equal(moved.amax(0), -moved.amin(0))


def test_a_group_s_shift_is_the_mean_of_its_steps_shifts() -> None:
    z = torch.tensor([[1.0, 2.0], [3.0, 6.0], [10.0, -2.0]])
    assert shift.group_means(z, [0, 0, 1]).tolist() == [[2.0, 4.0], [10.0, -2.0]]


def test_a_shift_follows_batches_with_its_momentum() -> None:
    start, batches = torch.tensor([4.0, 0.0]), torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    found = shift.following(start, batches, 0.75)
    assert found.tolist() == [0.75 * (0.75 * 4) + 0.25 * 2, 0.75 * 0.25 + 0.25]
