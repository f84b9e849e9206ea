"""Four-bit floats against the formats' tables, written out value by value."""

from __future__ import annotations

import math

import pytest
import torch

from adatsq_pipe.stages.numerics import float4
from tests.support.quantized_layers import nvfp4_by_hand

random = torch.Generator().manual_seed(11)
X = torch.randn(6, 64, generator=random) * torch.logspace(-3, 3, 6).unsqueeze(1)
E2M1 = [sign * value for value in (0, 1, 2, 4, 0.5, 1.5, 3, 6) for sign in (1, -1)]
"""Even mantissas first: `min` takes the first of two that are equally near."""


def test_nvfp4_is_the_nearest_number_under_a_scale_that_e4m3_holds() -> None:
    right = torch.stack([torch.cat([nvfp4_by_hand(block, row) for block in row.split(16)]) for row in X.double()])
    assert torch.allclose(float4.fake_quantize_floats(X, "nvfp4").double(), right, rtol=1e-6, atol=0)


def test_mxfp4_is_the_nearest_number_under_the_power_of_two_of_the_standard() -> None:
    found = float4.fake_quantize_floats(X, "mxfp4").double()
    for row, got in zip(X.double(), found, strict=True):
        for block, values in zip(row.split(32), got.split(32), strict=True):
            scale = 2.0 ** (math.floor(math.log2(float(block.abs().max()))) - 2)
            right = [min(E2M1, key=lambda k, x=x: abs(float(x) - k * scale)) * scale for x in block]  # type: ignore[misc]
            assert values.tolist() == right


@pytest.mark.parametrize("kind", float4.BLOCKS)
def test_the_stored_parts_stand_for_the_values_and_are_exact_in_bfloat16(kind: float4.Float4) -> None:
    row, scales = float4.block_scales(X, kind)
    codes = float4.codes_of(X, row, scales, kind)
    assert codes.dtype == scales.dtype == torch.uint8 and int(codes.max()) <= 15
    assert torch.equal(row, row.bfloat16().float())
    values = float4.float4_codebook().bfloat16()[codes.long()].unflatten(-1, (-1, float4.BLOCKS[kind]))
    products = values * float4.block_values(scales, kind, torch.bfloat16).unsqueeze(-1) * row.bfloat16().unsqueeze(-1)
    assert torch.equal(products.flatten(-2).float(), float4.fake_quantize_floats(X, kind))


@pytest.mark.parametrize("kind", float4.BLOCKS)
def test_zeros_and_the_smallest_numbers_stay_finite(kind: float4.Float4) -> None:
    x = torch.zeros(3, 32)
    x[1, 4], x[2, 4] = 1e-30, 3e38
    found = float4.fake_quantize_floats(x, kind)
    assert bool(found.isfinite().all()) and not found[0].any()
    assert float(found[2, 4]) == pytest.approx(3e38, rel=0.35)


def test_a_tie_goes_to_the_even_mantissa() -> None:
    x = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -2.5, -5.0, 6.0] + [0.0] * 20)
    right = [0, 1, 1, 2, 2, 4, 4, 0, -1, -2, -4, 6]
    assert float4.fake_quantize_floats(x, "mxfp4")[:12].tolist() == right


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_is_kept_and_rounding_again_changes_nothing(dtype: torch.dtype) -> None:
    x = X[2:4].to(dtype)
    once = float4.fake_quantize_floats(x, "mxfp4")
    assert once.dtype == dtype and torch.equal(float4.fake_quantize_floats(once, "mxfp4"), once)
