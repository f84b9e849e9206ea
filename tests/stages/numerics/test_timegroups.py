"""Calibrated scales against their definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from adatsq_pipe.stages.numerics import timegroups
from adatsq_pipe.stages.numerics.grid import dequantize, quantize
from adatsq_pipe.stages.numerics.weight_grid import weight_grid


def test_outputs_of_gelu_differ_from_other_inputs() -> None:
    x = torch.linspace(-6, 6, 500)
    assert timegroups.is_gelu_output([torch.nn.functional.gelu(x)])
    assert timegroups.is_gelu_output([torch.nn.functional.gelu(x, approximate="tanh")])
    assert not timegroups.is_gelu_output([torch.nn.functional.silu(x)]) and not timegroups.is_gelu_output([x.relu()])


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_least_values_of_gelu_are_known_in_every_dtype(approximate: str, dtype: torch.dtype) -> None:
    """The minimum lies near -0.75; a look at it so close that its rounding shows."""
    x = torch.linspace(-0.9, -0.6, 100_001)
    assert timegroups.is_gelu_output([functional.gelu(x, approximate=approximate).to(dtype)])
    assert not timegroups.is_gelu_output([functional.gelu(x, approximate=approximate).to(dtype) - 1e-3])


def test_steps_fall_into_equal_groups() -> None:
    assert timegroups.step_groups(10, 3) == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert timegroups.step_groups(2, 5) == [0, 1]


def _drifting(groups: int = 3, drift: float = 4.0) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randn(60, 16, generator=generator) * drift**g + g * (drift > 1) for g in range(groups)]
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


def _multiples(scale: float) -> list[float]:
    return [scale * (0.01 + 1.19 * i / 100) for i in range(101)] + [scale]


def _static(x: Tensor, scale: float, zero: float, most: int) -> Tensor:
    return ((x / scale).round() + zero).clamp(0, most).sub(zero) * scale


def _regions(x: Tensor, scale: float, zero: float, most: int) -> Tensor:
    half = (most + 1) // 2
    above, below = (
        (x / scale).round().clamp(0, half - 1) * scale,
        (x / (0.17 / half)).round().clamp(-half, 0) * 0.17 / half,
    )
    return torch.where(x < 0, below, above)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("most", [40, 1024])
@pytest.mark.parametrize("drift", [1.0, 4.0])
def test_scales_are_those_of_a_slow_search(regions: bool, most: int, drift: float) -> None:
    """The same alternation, in float64, one row of the weight and one scale at a time."""
    rows, w, curvature = _drifting(drift=drift)
    curvature *= torch.tensor([[100.0], [1.0], [0.01]])
    rows = [functional.gelu(x) for x in rows] if regions else [x - 0.5 for x in rows]
    start = weight_grid(w, bits=4, group=0, symmetric=False, clip=False)
    found = timegroups.calibrate(rows, w, curvature, start, bits=4, regions=regions, most=most)
    round_ = _regions if regions else _static

    def span(x: Tensor) -> tuple[float, float]:
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        return (high / 7, 0.0) if regions else ((high - low) / 15, round(-low * 15 / (high - low)))

    spans, whole = [span(x) for x in rows], span(torch.cat(rows))
    every = -(-60 * 3 // most)
    xs, w64 = [x[::every].double() for x in rows], w.double()
    zs, now, scales = [x @ w64.T for x in xs], list(spans), list[float]()
    for _ in range(3):
        held = [round_(x, *grid, 15) for x, grid in zip(xs, now, strict=True)]
        scales, wq = [], torch.empty_like(w64)
        for o in range(12):
            zero = float(start.zero_OG[o])
            options = [float(torch.tensor(m).bfloat16()) for m in _multiples(float(start.scale_OG[o]))]
            values = [_static(w64[o], s, zero, 15) for s in options]
            errors = [
                sum(
                    float(h.mean() * (x @ w64[o] - q @ v).square().sum())
                    for x, q, h in zip(xs, held, curvature, strict=True)
                )
                for v in values
            ]
            best = errors.index(min(errors))
            scales.append(options[best])
            wq[o] = values[best]

        def error(g: int, grid: tuple[float, float], wq: Tensor = wq) -> float:
            return float(((zs[g] - round_(xs[g], *grid, 15) @ wq.T).square() * curvature[g]).sum())

        singles = [(m, whole[1]) for m in _multiples(whole[0])]
        single_errors = [sum(error(g, grid) for g in range(3)) for grid in singles]
        single = singles[single_errors.index(min(single_errors))]
        now = [
            min([*((m, spans[g][1]) for m in _multiples(spans[g][0])), single], key=lambda c: error(g, c))
            for g in range(3)
        ]
    total = sum(float((z.square() * h).sum()) for z, h in zip(zs, curvature, strict=True))
    assert found.grid.scale_OG.flatten().tolist() == pytest.approx(scales, rel=1e-6)
    assert found.scale_G.tolist() == pytest.approx([scale for scale, _ in now], rel=1e-5)
    assert found.zero_G.tolist() == [zero for _, zero in now]
    assert found.error == pytest.approx(sum(error(g, now[g]) for g in range(3)) / total, rel=1e-3)
    assert found.single_error == pytest.approx(min(single_errors) / total, rel=1e-3)


def test_ranges_include_zero() -> None:
    rows = [torch.tensor([[2.0, 6.0]]), torch.tensor([[-2.0, -6.0]]), torch.tensor([[-1.0, 2.0]])]
    start = weight_grid(torch.ones(2, 2), bits=2, group=0, symmetric=False, clip=False)
    found = timegroups.min_max_calibration(rows, start, bits=2, regions=False)
    assert found.scale_G.tolist() == [2.0, 2.0, 1.0] and found.zero_G.tolist() == [0.0, 3.0, 1.0]
    assert math.isnan(found.error) and math.isnan(found.single_error) and found.grid is start
    split = timegroups.min_max_calibration([torch.tensor([[-0.1, 3.0]])], start, bits=3, regions=True)
    assert split.scale_G.tolist() == [1.0] and split.zero_G.tolist() == [0.0]


@pytest.mark.parametrize(("steps", "groups"), [(7, 3), (10, 4), (5, 5), (9, 1), (3, 8)])
def test_runs_of_steps_differ_by_at_most_one(steps: int, groups: int) -> None:
    place = timegroups.step_groups(steps, groups)
    assert place == sorted(place) and set(place) == set(range(min(groups, steps)))
    lengths = [place.count(group) for group in set(place)]
    assert max(lengths) - min(lengths) <= 1


def test_gelu_is_known_by_all_rows_together() -> None:
    assert timegroups.is_gelu_output([torch.tensor([0.5]), torch.tensor([-0.1])])
    assert not timegroups.is_gelu_output([torch.tensor([-0.1]), torch.tensor([-0.3])])
    assert not timegroups.is_gelu_output([torch.tensor([0.0, 1.0])])
