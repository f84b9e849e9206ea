"""Smoothing: the output stays, magnitudes move; correlations are those of scipy."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from adatsq_pipe.stages.numerics import smoothing


def _problem(seed: int = 3, width: int = 32, out: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(200, width, generator=random, dtype=torch.float64)
    x[:, 3] *= 40
    return x, torch.randn(out, width, generator=random), x.T @ x


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_smoothing_leaves_the_output_as_it_was(alpha: float) -> None:
    x, w, _ = _problem()
    s = smoothing.smoothquant(x.abs().amax(0), w, alpha=alpha)
    assert torch.allclose((x / s) @ (w.double() * s).T, x @ w.double().T, rtol=1e-9, atol=1e-9)


def test_smoothing_by_half_makes_both_sides_equal() -> None:
    x, w, _ = _problem()
    s = smoothing.smoothquant(x.abs().amax(0), w, alpha=0.5)
    assert torch.allclose((x / s).abs().amax(0), (w.double() * s).abs().amax(0))


def test_smoothing_leaves_dead_channels_alone() -> None:
    x, w, _ = _problem()
    x[:, 1], w[:, 2] = 0, 0
    s = smoothing.smoothquant(x.abs().amax(0), w, alpha=0.5)
    assert s[1] == 1 and s[2] == 1 and s.isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_scipys(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(0, 9, (2, 40), generator=generator).float()
    assert smoothing.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert smoothing.spearman(a, torch.ones(40)) == 0


def test_salience_weighs_steps_by_how_little_they_follow_the_weight() -> None:
    w = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    peaks = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    eta = torch.softmax(torch.tensor([-1.0, 1.0], dtype=torch.float64), 0)
    assert torch.allclose(smoothing.temporal_salience(peaks, w), eta @ peaks.double())


def test_balancing_leaves_the_output_and_makes_both_saliences_equal() -> None:
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(3, 50, 8, generator=generator).double(), torch.randn(6, 8, generator=generator)
    x[..., 2] *= 30
    salience = smoothing.temporal_salience(x.abs().amax(1), w)
    s = smoothing.smoothquant(salience, w, alpha=0.5)
    peak_w = w.double().abs().amax(0)
    assert torch.allclose(1 / s, (salience * peak_w).sqrt() / salience)
    assert torch.allclose(s, (salience * peak_w).sqrt() / peak_w)
    flat = x.flatten(0, 1)
    assert torch.allclose((flat / s) @ (w.double() * s).T, flat @ w.double().T, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_scales_are_those_of_smoothquants_formula(alpha: float) -> None:
    x, w, _ = _problem()
    x[:, 1], w[:, 2], w[:, 5] = 0, 0, -w[:, 5].abs()
    s = smoothing.smoothquant(x.abs().amax(0), w, alpha=alpha)
    for j in range(32):
        peak_x, peak_w = max(abs(v) for v in x[:, j].tolist()), max(abs(v) for v in w[:, j].tolist())
        slow = peak_x**alpha / peak_w ** (1 - alpha) if peak_x and peak_w else 1.0
        assert float(s[j]) == pytest.approx(slow)


def test_salience_takes_absolute_maxima_of_the_weight() -> None:
    w = torch.tensor([[1.0, -2.0, 3.0, -4.0], [-0.5, 0.1, 0.2, 0.3]])
    peaks = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0]])
    rho = [1.0, float(stats.spearmanr([1, 2, 4, 3], [1, 2, 3, 4]).statistic)]
    total = sum(math.exp(-r) for r in rho)
    slow = [sum(math.exp(-r) / total * float(p[j]) for r, p in zip(rho, peaks, strict=True)) for j in range(4)]
    assert smoothing.temporal_salience(peaks, w).tolist() == pytest.approx(slow)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert smoothing.ranks(torch.tensor([5.0, 1.0, 5.0, 7.0, 5.0])).tolist() == [2.0, 0.0, 2.0, 4.0, 2.0]


def test_a_moving_average_keeps_99_hundredths_of_the_steps_before() -> None:
    peaks = torch.tensor([[1.0, 8.0], [2.0, 0.0], [4.0, 4.0]])
    first = [0.99 * a + 0.01 * b for a, b in ((1.0, 2.0), (8.0, 0.0))]
    wanted = [0.99 * a + 0.01 * 4 for a in first]
    assert smoothing.moving_average(peaks).tolist() == pytest.approx(wanted, rel=1e-12)


def test_outlier_channels_are_divided_by_the_whole_number_nearest_to_their_excess() -> None:
    peaks = torch.tensor([1.0, 12.3, 2.0, 0.5, 5.2])
    assert smoothing.whole_factors(peaks, 0).tolist() == [1, 1, 1, 1, 1]
    assert smoothing.whole_factors(peaks, 1).tolist() == [1, 2, 1, 1, 1], "12.3 / 5.2 is 2.4"
    assert smoothing.whole_factors(peaks, 2).tolist() == [1, 6, 1, 1, 3], "12.3 / 2 and 5.2 / 2"
    assert smoothing.whole_factors(torch.zeros(3), 1).tolist() == [1, 1, 1]
