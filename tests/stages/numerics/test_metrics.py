"""Errors against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from adatsq_pipe.stages.numerics import metrics
from adatsq_pipe.stages.numerics.metrics import mean_log_error, psnr, relative_error


def test_metrics() -> None:
    x = torch.tensor([1.0, 2.0, 2.0])
    assert relative_error(x, x) == 0 and relative_error(x * 1.1, x) == pytest.approx(0.01, rel=1e-4)
    assert psnr(x + 0.1, x, peak=1.0) == pytest.approx(20, abs=1e-3) and math.isinf(psnr(x, x, peak=1.0))


def test_a_sample_that_went_astray_does_not_decide() -> None:
    wanted = torch.ones(4, 3, 2)
    got = wanted * torch.tensor([1.1, 1.1, 1.1, 11.0]).view(4, 1, 1)
    assert math.exp(mean_log_error(got, wanted, 4)) == pytest.approx((0.01**3 * 100) ** 0.25, rel=1e-4)
    assert mean_log_error(got, wanted, 2) > mean_log_error(got[:2], wanted[:2], 1), "frames belong to their sample"
    assert math.isfinite(mean_log_error(wanted, wanted, 4))


def test_errors_by_hand() -> None:
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0])) == pytest.approx(9 / 16)
    got, reference = torch.tensor([[2.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert mean_log_error(got, reference, 2) == pytest.approx((math.log(1.0) + math.log(0.25)) / 2)
    assert mean_log_error(reference, reference, 2) == pytest.approx(math.log(1e-30))
    assert psnr(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.0]), peak=2.0) == pytest.approx(10 * math.log10(4 / 2))


def test_clips_are_compared_in_parts_and_pictures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip of 3 frames of 2 x 2 pixels whose last frame is off by 2 in one of 36 values, and 36 squares of 3."""
    sizes = list[int]()
    real = metrics._parts
    monkeypatch.setattr(metrics, "_parts", lambda x: [sizes.append(part.numel()) or part for part in real(x)])
    reference = torch.full((3, 2, 2, 3), 3.0)
    got = reference.clone()
    got[2, 1, 1, 2] += 2
    for most, expected in ((36, {36}), (10, {10, 6})):
        monkeypatch.setattr(metrics, "AT_ONCE", most)
        sizes.clear()
        assert relative_error(got, reference) == pytest.approx(4 / (36 * 9), rel=1e-14)
        assert psnr(got, reference, peak=1.0) == pytest.approx(-10 * math.log10(4 / 36), rel=1e-14)
        assert set(sizes) == expected
    with pytest.raises(ValueError, match=r"shapes \[2\] and \[3\]"):
        relative_error(torch.ones(2), torch.ones(3))
