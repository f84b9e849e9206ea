"""Grids against obvious versions."""

from __future__ import annotations

import pytest
import torch

from adatsq_pipe.stages.numerics.grid import (
    CLIP_NORM,
    dequantize,
    fake_quantize_regions,
    fake_quantize_to_codebook,
    fake_quantize_tokens,
    quantize,
    rows_of,
    static_codes,
    token_codes,
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


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "width"), [(2, 96), (2, 512), (2, 1024), (3, 1024), (4, 1024), (4, 96)])
def test_the_clipping_is_the_best_of_all_ratios(bits: int, width: int, symmetric: bool) -> None:
    """Where rows are long, ratios are not all tried: almost the best. The norm goes by bits and length."""
    random = torch.Generator().manual_seed(bits)
    w = torch.randn(40, width, generator=random) * torch.logspace(-3, 3, 40).unsqueeze(1)
    grid = weight_grid(w, bits=bits, group=0, symmetric=symmetric, clip=True)

    power = {2: 3, 3: 2.5, 4: 2}[bits] if width >= 1024 or bits == 2 else 2.4

    def errors(scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        codes = (torch.round(w / scale) + zero).clamp(0, 2**bits - 1)
        return ((codes - zero) * scale - w).abs().double().pow(power).sum(1)

    least = torch.full((40,), torch.inf).double()
    for step in range(40):
        ratio = 1 - 0.015 * step
        plain = weight_grid(ratio * w, bits=bits, group=0, symmetric=symmetric, clip=False)
        least = torch.minimum(least, errors(plain.scale_OG, plain.zero_OG))
    worse = errors(grid.scale_OG, grid.zero_OG) / least - 1
    assert worse.max() < (0.02 if width >= 512 else 1e-4) and worse.mean() < 1e-3


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


def test_a_grid_by_hand() -> None:
    w = torch.tensor([[-1.0, 0.2, 2.0, 1.4], [-4.0, 0.2, 2.0, -1.0]])
    asymmetric = weight_grid(w, bits=2, group=0, symmetric=False, clip=False)
    assert asymmetric.qmax == 3
    assert asymmetric.scale_OG.tolist() == [[1.0], [2.0]] and asymmetric.zero_OG.tolist() == [[1.0], [2.0]]
    scale, zero = asymmetric.columns(4)
    assert quantize(w, scale, zero, 3).tolist() == [[0, 1, 3, 2], [0, 2, 3, 2]]
    symmetric = weight_grid(w, bits=2, group=0, symmetric=True, clip=False)
    assert symmetric.scale_OG.flatten().tolist() == pytest.approx([4 / 3, 8 / 3])
    assert symmetric.zero_OG.tolist() == [[2.0], [2.0]]
    scale, zero = symmetric.columns(4)
    assert quantize(w, scale, zero, 3).tolist() == [[1, 2, 3, 3], [0, 2, 3, 2]]


def test_ranges_include_zero() -> None:
    w = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    grid = weight_grid(w, bits=2, group=0, symmetric=False, clip=False)
    assert grid.scale_OG.tolist() == [[1.0], [1.0]] and grid.zero_OG.tolist() == [[0.0], [3.0]]


def test_every_group_has_a_grid_of_its_own() -> None:
    w = torch.tensor([[0.0, 3.0, -10.0, 20.0], [0.0, 300.0, -2000.0, 1000.0]])
    grid = weight_grid(w, bits=2, group=2, symmetric=False, clip=False)
    assert grid.scale_OG.tolist() == [[1.0, 10.0], [100.0, 1000.0]]
    scale, zero = grid.columns(4)
    assert scale.tolist() == [[1.0, 1.0, 10.0, 10.0], [100.0, 100.0, 1000.0, 1000.0]]
    assert zero.tolist() == [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]]


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_clipping_ratio_has_the_least_error_of_forty(symmetric: bool) -> None:
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(2)) + torch.tensor([0.0, 0.7]).repeat(20)
    w[2, 5], w[4, 7] = 9.0, -14.0
    grid = weight_grid(w, bits=3, group=20, symmetric=symmetric, clip=True)
    for row, scale, zero in zip(
        w.reshape(12, 20).tolist(), grid.scale_OG.flatten(), grid.zero_OG.flatten(), strict=True
    ):
        candidates = list[tuple[float, float, int]]()
        for i in range(40):
            ratio = 1 - 0.6 * i / 40
            low, high = min(row) * ratio, max(row) * ratio
            s = 2 * max(-low, high) / 7 if symmetric else (high - low) / 7
            z = 4 if symmetric else round(-low / s)
            values = [(min(max(round(v / s) + z, 0), 7) - z) * s for v in row]
            candidates.append((sum(abs(q - v) ** 2.4 for q, v in zip(values, row, strict=True)), s, z))
        _, s, z = min(candidates)
        assert float(scale) == pytest.approx(s, rel=1e-5) and float(zero) == z


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
