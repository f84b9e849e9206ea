"""Clipped tokens and the search of their ratios, against loops over single numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.clipping import RATIOS, best_ratios, fake_quantize_clipped
from adatsq_pipe.stages.numerics.grid import fake_quantize_tokens


def _by_hand(x: Tensor, bits: int, ratio: float, symmetric: bool, group: int) -> Tensor:
    """Every number of every group of every token on the levels between the clipped ends of the group's range."""
    out = torch.empty_like(x)
    for n in range(len(x)):
        for start in range(0, x.shape[1], group or x.shape[1]):
            part = x[n, start : start + (group or x.shape[1])].tolist()
            if symmetric:
                side = 2 ** (bits - 1) - 1
                scale = max(map(abs, part)) * ratio / side
                levels = [k * scale for k in range(-side, side + 1)]
            else:
                low, high = min(0.0, *part) * ratio, max(0.0, *part) * ratio
                scale = (high - low) / (2**bits - 1)
                levels = [(round(low / scale) + k) * scale for k in range(2**bits)]
            for i, value in enumerate(part):
                out[n, start + i] = min(levels, key=lambda level: abs(level - value))
    return out


def _inputs(seed: int, count: int = 5) -> Tensor:
    drawn = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)) + 0.3
    return torch.where(drawn > 1.6, 3 * drawn, drawn)


@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("ratio", [1.0, 0.7, 0.4])
def test_numbers_outside_the_clipped_range_get_its_ends(ratio: float, symmetric: bool, group: int) -> None:
    x = _inputs(1)
    got = fake_quantize_clipped(x, 15.0, torch.tensor(ratio), symmetric=symmetric, group=group)
    torch.testing.assert_close(got, _by_hand(x, 4, ratio, symmetric, group), rtol=1e-4, atol=1e-5)
    if ratio == 1:
        torch.testing.assert_close(got, fake_quantize_tokens(x, 15.0, symmetric=symmetric, group=group))


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_bin_s_ratio_has_the_least_output_error_of_all(symmetric: bool) -> None:
    """Bins differ: one has outliers, one has not, and one has two values."""
    w = torch.randn(6, 16, generator=torch.Generator().manual_seed(5))
    values = w + 0.1 * torch.randn(6, 16, generator=torch.Generator().manual_seed(6))
    bins = [
        _inputs(2, 9),
        torch.rand(7, 16, generator=torch.Generator().manual_seed(3)),
        1.03 * _inputs(4, 3).sign() + 0.1,
    ]
    ratios, gains = best_ratios(bins, w, values, bits=3, symmetric=symmetric, group=8)
    for x, ratio, gain in zip(bins, ratios.tolist(), gains.tolist(), strict=True):
        errors = {
            tried: sum(
                float(((w.double() @ a.double()) - (values.double() @ b.double())).square().sum())
                for a, b in zip(x, _by_hand(x, 3, tried, symmetric, 8), strict=True)
            )
            for tried in RATIOS
        }
        best = min(errors, key=lambda tried: errors[tried])
        assert ratio == pytest.approx(best) and gain == pytest.approx(errors[best] / errors[1.0], rel=1e-3)
    assert min(ratios.tolist()) < 1
