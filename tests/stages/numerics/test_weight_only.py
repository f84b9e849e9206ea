"""Weights to nearest by groups: grids computed again in float64, and ranges that bfloat16 does not cut."""

from __future__ import annotations

import pytest
import torch

from adatsq_pipe.stages.numerics.weight_only import round_weight, rounded_weight


def test_eight_bits_are_the_range_of_a_group_in_255_steps() -> None:
    w = torch.tensor([[-1.0, 0.0, 1.0, 0.55, 3.0, 1.0, 2.0, 0.25]])
    found = round_weight(w, bits=8, group=4)
    for group, (low, high) in enumerate(((-1.0, 1.0), (0.0, 3.0))):
        exact = (high - low) / 255
        scale = float(found["scale"][0, group])
        assert exact <= scale <= exact * (1 + 2**-7), "rounded up, and by bfloat16's step at most"
        zero = round(-low / scale)
        assert int(found["zero"][0, group]) == zero
        for column in range(4):
            value = float(w[0, 4 * group + column])
            code = min(255, max(0, round(value / scale) + zero))
            assert int(found["codes"][0, 4 * group + column]) == code
    values = rounded_weight(found["codes"], found["scale"].float(), found["zero"])
    assert bool(((values - w).abs() <= found["scale"].float().amax() * 1.01).all())


def test_a_scale_is_never_below_the_exact_one() -> None:
    w = torch.rand(50, 32, generator=torch.Generator().manual_seed(0)) + 0.1
    scale = round_weight(w, bits=8, group=0)["scale"].float()
    exact = w.amax(1, keepdim=True).double() / 255
    assert bool((scale >= exact).all() and (scale <= exact * (1 + 2**-7)).all())


def test_four_bits_are_clipped_where_that_errs_less() -> None:
    w = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    found = round_weight(w, bits=4, group=0)
    values = rounded_weight(found["codes"], found["scale"].float(), found["zero"])
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    step = (high - low) / 15
    plain = (torch.round(w / step) - torch.round(low / step)).clamp(0, 15) * step + torch.round(low / step) * step
    assert float((values - w).square().sum()) < 0.95 * float((plain - w).square().sum())


def test_rows_of_zeros_and_numbers_that_are_not_finite() -> None:
    found = round_weight(torch.zeros(2, 8), bits=4, group=0)
    assert not rounded_weight(found["codes"], found["scale"].float(), found["zero"]).any()
    with pytest.raises(ValueError, match="not finite"):
        round_weight(torch.tensor([[1.0, torch.nan]]), bits=8, group=0)
