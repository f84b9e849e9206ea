"""Grids against obvious versions."""

from __future__ import annotations

import pytest
import torch

from adatsq_pipe.stages.numerics.grid import (
    fake_quantize_regions,
    fake_quantize_to_codebook,
    fake_quantize_tokens,
    quantize,
    rows_of,
    static_codes,
    token_codes,
)


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


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("group", [0, 4])
def test_symmetric_tokens_and_groups_against_a_loop(bits: int, group: int) -> None:
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 12)
    x[0], x[1] = -x[0].abs(), x[1].abs() + 1
    steps = 2 ** (bits - 1) - 1
    for symmetric in (True, False):
        got = fake_quantize_tokens(x, 2.0**bits - 1, symmetric=symmetric, group=group).reshape(-1, group or 12)
        for row, values in zip(x.reshape(-1, group or 12).tolist(), got, strict=True):
            low, high = min(*row, 0.0), max(*row, 0.0)
            scale = max(-low, high) / steps if symmetric else (high - low) / (2**bits - 1)
            least = -steps if symmetric else round(low / scale)
            most = steps if symmetric else least + 2**bits - 1
            slow = [min(max(round(v / scale), least), most) * scale for v in row]
            assert torch.allclose(values, torch.tensor(slow), rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_of_tokens_times_their_scales_are_the_values(symmetric: bool) -> None:
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3)) + 0.8
    codes, scale = token_codes(x, 15.0, symmetric=symmetric)
    assert codes.shape == x.shape and scale.shape == (2, 5, 1)
    assert torch.equal(codes * scale, fake_quantize_tokens(x, 15.0, symmetric=symmetric))
    assert torch.equal(codes, codes.round()) and float((codes.amax(-1) - codes.amin(-1)).max()) <= 15
    half, scale = token_codes(x.bfloat16(), 15.0, symmetric=symmetric)
    assert half.dtype == torch.bfloat16 and scale.dtype == torch.float32
    assert fake_quantize_tokens(x.bfloat16(), 15.0, symmetric=symmetric).dtype == torch.bfloat16


def test_a_static_grid_clamps_at_both_ends() -> None:
    x = torch.tensor([-9.0, -0.6, -0.4, 0.2, 0.8, 1.1, 9.0])
    got = static_codes(x, 7.0, torch.tensor(0.5), torch.tensor(2.0))
    assert got.tolist() == [-2, -1, -1, 0, 2, 2, 5]


def test_tokens_on_a_codebook_against_a_loop() -> None:
    levels = torch.tensor([-1.5, -0.4, 0.4, 1.5], dtype=torch.float64)
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(5)) * torch.logspace(-2, 2, 6).view(-1, 1)
    got = fake_quantize_to_codebook(x, levels)
    for row, values in zip(x.tolist(), got, strict=True):
        size = (sum(v * v for v in row) / 10) ** 0.5
        slow = [min(levels.tolist(), key=lambda level: abs(level - v / size)) * size for v in row]
        assert values.tolist() == pytest.approx(slow, rel=1e-5)


def test_rows_are_a_view_of_the_part_and_the_tensor_itself_where_that_is_all() -> None:
    x = torch.arange(12).view(4, 3)
    assert rows_of(x, slice(0, 4)) is x and rows_of(x, slice(0, 9)) is x
    assert torch.equal(rows_of(x, slice(2, 9)), x[2:]) and torch.equal(rows_of(x, slice(0, 3)), x[:3])


def test_halves_go_to_the_even_step_before_zero_is_added() -> None:
    """As in GPTQ's own quantizer: round(w / scale) + zero."""
    codes = quantize(torch.tensor([0.5, 1.5, -0.5]), torch.tensor(1.0), torch.tensor(1.0), 3)
    assert codes.tolist() == [1, 3, 1]


def test_a_token_whose_ends_are_both_halves_has_no_code_too_many() -> None:
    codes, scale = token_codes(torch.tensor([[-3.5, 11.5, 0.0]]), 15.0, symmetric=False)
    assert scale.tolist() == [[1.0]] and codes.tolist() == [[-4, 11, 0]]
