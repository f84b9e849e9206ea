"""Grids against obvious versions."""

from __future__ import annotations

import pytest
import torch

from adatsq_pipe.stages.numerics.grid import (
    CLIP_NORM,
    dequantize,
    fake_quantize_regions,
    fake_quantize_tokens,
    quantize,
    weight_grid,
)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_is_to_the_nearest_level(bits: int, group: int, symmetric: bool) -> None:
    w = torch.randn(5, 16, generator=torch.Generator().manual_seed(bits))
    grid = weight_grid(w, bits=bits, group=group, symmetric=symmetric, clip=False)
    scale, zero = grid.columns(16)
    codes = quantize(w, scale, zero, grid.qmax)
    assert codes.min() >= 0 and codes.max() <= 2**bits - 1
    levels = dequantize(torch.arange(2**bits).view(-1, 1, 1).float(), scale, zero)
    nearest = (levels - w).abs().amin(0)
    assert torch.allclose((dequantize(codes, scale, zero) - w).abs(), nearest, atol=1e-6)


def test_clipping_never_hurts_and_helps_with_an_outlier() -> None:
    w = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    w[1, 7] = 25.0
    errors = {}
    for clip in (False, True):
        grid = weight_grid(w, bits=3, group=0, symmetric=False, clip=clip)
        scale, zero = grid.columns(64)
        errors[clip] = (dequantize(quantize(w, scale, zero, grid.qmax), scale, zero) - w).abs().pow(CLIP_NORM).sum(1)
    assert (errors[True] <= errors[False] + 1e-5).all()
    assert errors[True][0] < errors[False][0]


@pytest.mark.parametrize("value", [0.0, 1.5, -2.0])
def test_constant_rows_are_exact(value: float) -> None:
    w = torch.full((2, 8), value)
    grid = weight_grid(w, bits=4, group=0, symmetric=False, clip=False)
    scale, zero = grid.columns(8)
    assert torch.allclose(dequantize(quantize(w, scale, zero, grid.qmax), scale, zero), w, atol=1e-6)


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="group size 5 does not divide"):
        weight_grid(torch.ones(2, 16), bits=4, group=5, symmetric=False, clip=False)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_tokens_against_a_loop(bits: int) -> None:
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 7).view(-1, 1)
    got = fake_quantize_tokens(x, 2.0**bits - 1, symmetric=False)
    for row, rounded in zip(x, got, strict=True):
        low, high = min(row.min().item(), 0.0), max(row.max().item(), 0.0)
        scale = (high - low) / (2**bits - 1)
        zero = round(low / scale)
        wanted = [min(max(round(v.item() / scale), zero), zero + 2**bits - 1) * scale for v in row]
        assert torch.allclose(rounded, torch.tensor(wanted), rtol=1e-4, atol=1e-6 * scale)
        assert len(rounded.unique()) <= 2**bits


def test_token_edge_cases() -> None:
    assert fake_quantize_tokens(torch.zeros(2, 4), 7.0, symmetric=False).equal(torch.zeros(2, 4))
    assert fake_quantize_tokens(torch.empty(0, 4), 7.0, symmetric=False).shape == (0, 4)
    positive = torch.rand(3, 9) + 0.5
    assert torch.allclose(fake_quantize_tokens(positive, 255.0, symmetric=True), positive, atol=0.01)


def test_regions_are_two_grids() -> None:
    x = torch.tensor([-0.5, -0.17, -0.01, 0.0, 0.04, 0.26, 9.0])
    fine, scale = 0.17 / 8, torch.tensor(0.1)
    got = fake_quantize_regions(x, 15.0, scale)
    slow = [max(-8, round(v / fine)) * fine if v < 0 else min(7, round(v / 0.1)) * 0.1 for v in x.tolist()]
    assert got.tolist() == pytest.approx(slow, abs=1e-6)
