"""Calibrated scales against their definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics import timegroups
from adatsq_pipe.stages.numerics.grid import dequantize, quantize, weight_grid


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
