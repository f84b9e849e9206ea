"""MagR's proximal gradient steps against the problem they minimise, written out."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.magnitude import smaller_weight, without_largest

random = torch.Generator().manual_seed(3)
W = torch.randn(5, 8, generator=random, dtype=torch.float64)
X = torch.randn(30, 8, generator=random, dtype=torch.float64) * torch.logspace(0, -1, 8, dtype=torch.float64)
GRAM = X.T @ X


def _objective(v: Tensor, w: Tensor, gram: Tensor, penalty: float) -> Tensor:
    """1/2 |X (v - w)|^2 + a |v|_inf of every row; `a` as the docstring of `smaller_weight` has it."""
    a = penalty * w.abs().sum(1) * torch.linalg.eigvalsh(gram)[-1]
    return ((v - w) @ gram * (v - w)).sum(1) / 2 + a * v.abs().amax(1)


@pytest.mark.parametrize("radius", [0.0, 0.3, 1.5, 100.0])
def test_the_proximal_step_is_the_best_level_to_cut_a_row_to(radius: float) -> None:
    cut = without_largest(W, torch.full((5,), radius, dtype=torch.float64))
    for row, got in zip(W, cut, strict=True):
        levels = torch.linspace(0, float(row.abs().max()), 20_001, dtype=torch.float64)
        tried = row.clamp(-levels.unsqueeze(1), levels.unsqueeze(1))
        costs = (tried - row).square().sum(1) / 2 + radius * levels
        assert torch.allclose(got, tried[costs.argmin()], atol=2e-4)


def test_every_step_lowers_the_objective_towards_the_least() -> None:
    penalty = 0.01
    costs = [
        _objective(smaller_weight(W, GRAM, penalty=penalty, rounds=n), W, GRAM, penalty) for n in (0, 1, 5, 20, 3000)
    ]
    for before, after in itertools.pairwise(costs):
        assert bool((after <= before + 1e-12).all())
    found = smaller_weight(W, GRAM, penalty=penalty, rounds=3000)
    for _ in range(200):
        near = found + 0.01 * torch.randn(5, 8, generator=random, dtype=torch.float64)
        assert bool((_objective(near, W, GRAM, penalty) > costs[-1]).all())


def test_the_largest_weights_fall_and_the_output_hardly_moves() -> None:
    smaller = smaller_weight(W, GRAM, penalty=0.01)
    assert bool((smaller.abs().amax(1) < W.abs().amax(1)).all())
    moved = ((smaller - W) @ X.T).square().sum()
    assert moved < 0.02 * (W @ X.T).square().sum()


def test_no_penalty_keeps_the_weight() -> None:
    assert torch.equal(smaller_weight(W, GRAM, penalty=0), W)
    assert torch.equal(smaller_weight(W, torch.zeros(8, 8), penalty=0.1), W)
