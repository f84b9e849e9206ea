"""Parts of the published methods: Spearman's salience, time groups, two regions, evolution, spending bits."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from scipy import stats
from torch import Tensor

from adatsq_pipe.stages.methods._layer import fitted
from adatsq_pipe.stages.numerics import smoothing, timegroups
from adatsq_pipe.stages.numerics.evolve import evolve
from adatsq_pipe.stages.numerics.grid import dequantize, fake_quantize_regions, quantize, weight_grid
from adatsq_pipe.stages.numerics.policy import allocate_greedily


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


def test_regions_are_two_grids() -> None:
    x = torch.tensor([-0.5, -0.17, -0.01, 0.0, 0.04, 0.26, 9.0])
    fine, scale = 0.17 / 8, torch.tensor(0.1)
    got = fake_quantize_regions(x, 15.0, scale)
    slow = [max(-8, round(v / fine)) * fine if v < 0 else min(7, round(v / 0.1)) * 0.1 for v in x.tolist()]
    assert got.tolist() == pytest.approx(slow, abs=1e-6)


def test_gelu_is_told_from_other_inputs() -> None:
    x = torch.linspace(-6, 6, 500)
    assert timegroups.is_gelu_output([torch.nn.functional.gelu(x)])
    assert timegroups.is_gelu_output([torch.nn.functional.gelu(x, approximate="tanh")])
    assert not timegroups.is_gelu_output([torch.nn.functional.silu(x)]) and not timegroups.is_gelu_output([x.relu()])


def test_steps_fall_into_equal_groups() -> None:
    assert timegroups.step_groups(10, 3) == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert timegroups.step_groups(2, 5) == [0, 1]


def _drifting(groups: int = 3) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randn(60, 16, generator=generator) * 4.0**g + g for g in range(groups)]
    return rows, torch.randn(12, 16, generator=generator), torch.rand(groups, 12, generator=generator).double()


@pytest.mark.parametrize("bits", [4, 6])
def test_grouped_scales_are_never_worse_than_one(bits: int) -> None:
    rows, w, curvature = _drifting()
    start = weight_grid(w, bits=bits, group=0, symmetric=False, clip=False)
    found = timegroups.calibrate(rows, w, curvature, start, bits=bits, regions=False)
    assert found.error <= found.single_error * (1 + 1e-12)
    assert found.error < 0.5 * found.single_error
    held = dequantize(
        quantize(w, found.grid.scale_OG, found.grid.zero_OG, found.grid.qmax), found.grid.scale_OG, start.zero_OG
    )
    error = total = 0.0
    for x, h, scale, zero in zip(rows, curvature, found.scale_G, found.zero_G, strict=True):
        codes = (torch.round(x / scale) + zero).clamp(0, 2**bits - 1)
        delta = x @ w.T - ((codes - zero) * scale) @ held.T
        error += float((delta.double().square() * h).sum())
        total += float(((x @ w.T).double().square() * h).sum())
    assert found.error == pytest.approx(error / total, rel=1e-4)


def test_scales_start_from_min_max_and_do_not_end_worse() -> None:
    rows, w, curvature = _drifting(1)
    start = weight_grid(w, bits=4, group=0, symmetric=False, clip=False)
    found = timegroups.calibrate(rows, w, curvature, start, bits=4, regions=False)
    low, high = rows[0].min(), rows[0].max()
    scale = (high - low) / 15
    zero = torch.round(-low / scale)
    x = ((torch.round(rows[0] / scale) + zero).clamp(0, 15) - zero) * scale
    held = dequantize(quantize(w, start.scale_OG, start.zero_OG, 15), start.scale_OG, start.zero_OG)
    plain = ((rows[0] @ w.T - x @ held.T).double().square() * curvature[0]).sum()
    whole = ((rows[0] @ w.T).double().square() * curvature[0]).sum()
    assert found.error < float(plain / whole)


def test_a_range_is_that_of_all_rows() -> None:
    rows, w, _ = _drifting(2)
    start = weight_grid(w, bits=4, group=0, symmetric=False, clip=False)
    found = timegroups.min_max_calibration(rows, start, bits=4, regions=False)
    for x, scale, zero in zip(rows, found.scale_G, found.zero_G, strict=True):
        got = timegroups.fake_quantize_static(x, 15.0, scale, zero, regions=False)
        assert float((got - x).abs().max()) <= float(scale) * 1.01
        assert float(scale) == pytest.approx(float(x.max() - x.min()) / 15)
    assert torch.equal(found.grid.scale_OG, start.scale_OG)


@pytest.mark.parametrize("seed", range(4))
def test_evolution_is_never_worse_than_its_start_and_near_the_best(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [[1, 2, 4]] * 6
    errors = [sorted(draw.random() for _ in range(3)) for _ in range(6)]
    start = (1,) * 6
    found = evolve(errors, sizes, start, least_mean=2, seed=seed)
    total = sum(errors[layer][i] for layer, i in enumerate(found))
    assert sum(sizes[layer][i] for layer, i in enumerate(found)) >= 12
    assert total <= sum(row[1] for row in errors)
    allowed = (g for g in itertools.product(range(3), repeat=6) if sum(sizes[0][i] for i in g) >= 12)
    assert total == pytest.approx(min(sum(errors[layer][i] for layer, i in enumerate(g)) for g in allowed))
    assert found == evolve(errors, sizes, start, least_mean=2, seed=seed)
    with pytest.raises(ValueError, match="mean size"):
        evolve(errors, sizes, (0,) * 6, least_mean=2)


def test_bits_are_spent_where_they_mend_most() -> None:
    errors = [[1.0, 0.9, 0.0], [5.0, 1.0, 0.9], [0.1, 0.1, 0.1]]
    assert allocate_greedily(errors, (3, 4, 8), 3.0) == (3, 3, 3)
    assert allocate_greedily(errors, (3, 4, 8), 3.4) == (3, 4, 3)
    assert allocate_greedily(errors, (3, 4, 8), 5.0) == (8, 4, 3)
    assert allocate_greedily(errors, (3, 4, 8), 8.0) == (8, 8, 3)
    with pytest.raises(ValueError, match="below the fewest"):
        allocate_greedily(errors, (3, 4, 8), 2.5)


def test_a_group_is_fitted_to_the_width() -> None:
    assert [fitted(128, g) for g in (32, 64, 192, 288, 0)] == [32, 64, 128, 128, 0]
    assert fitted(341, 64) == 31 and fitted(341, 400) == 341
