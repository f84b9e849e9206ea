"""Fisher scores against autograd, temporal weights against their definition."""

from __future__ import annotations

import math

import pytest
import torch

from adatsq_pipe.stages.numerics import sensitivity
from adatsq_pipe.stages.numerics.sensitivity import effective_steps, squared_gradient_mean, temporal_weights


def test_squared_gradient_is_that_of_autograd() -> None:
    x, w = torch.randn(6, 5), torch.randn(3, 5, requires_grad=True)
    y = x @ w.T
    g = torch.randn_like(y)
    y.backward(g)
    assert w.grad is not None
    assert float(squared_gradient_mean(x, g)) == pytest.approx(float(w.grad.square().mean()), rel=1e-5)


@pytest.mark.parametrize("half", [True, False])
def test_squared_gradients_of_half_precision_are_those_of_float64(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "BF16_ON_CPU", half)
    random = torch.Generator().manual_seed(0)
    x, g = (torch.randn(2, 40, width, generator=random).bfloat16() for width in (96, 160))

    found = squared_gradient_mean(x, g)

    gradient = torch.einsum("bno,bni->oi", g.double(), x.double())
    assert found.dtype == torch.float64 and float(found) == pytest.approx(float(gradient.square().mean()), rel=1e-4)


@pytest.mark.parametrize("wanted", [2.0, 5.0, 9.5])
def test_temperature_gives_the_effective_steps_asked_for(wanted: float) -> None:
    scores = torch.rand(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp() * 1e-6
    alpha, tau = temporal_weights(scores, effective=wanted)
    assert float(alpha.sum()) == pytest.approx(1)
    assert effective_steps(alpha) == pytest.approx(wanted, rel=1e-3)
    assert torch.equal(alpha.argsort(), scores.argsort()) and tau > 0


def test_equal_scores_give_equal_weights() -> None:
    alpha, tau = temporal_weights(torch.ones(4), effective=2.0)
    assert alpha.tolist() == [0.25] * 4 and math.isinf(tau)


@pytest.mark.parametrize("wanted", [1.01, 3.0, 9.99])
@pytest.mark.parametrize("outlier", [1.0, 1e3])
def test_weights_are_the_softmax_of_scores_over_tau(wanted: float, outlier: float) -> None:
    scores = torch.rand(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores[4] *= outlier
    alpha, tau = temporal_weights(scores, effective=wanted)
    assert torch.allclose(
        alpha, torch.exp((scores - scores.max()) / tau) / torch.exp((scores - scores.max()) / tau).sum()
    )
    entropy = -sum(a * math.log(a) for a in alpha.tolist() if a > 0)
    assert math.exp(entropy) == pytest.approx(wanted, rel=1e-3)


def test_effective_steps_count_equal_weights() -> None:
    assert effective_steps(torch.tensor([0.5, 0.0, 0.5])) == pytest.approx(2)
    assert effective_steps(torch.tensor([1.0, 0.0])) == 1
    assert effective_steps(torch.full((7,), 1 / 7, dtype=torch.float64)) == pytest.approx(7)


def test_as_many_effective_steps_as_steps_give_equal_weights() -> None:
    for wanted in (3.0, 5.0):
        alpha, tau = temporal_weights(torch.tensor([1.0, 2.0, 3.0]), effective=wanted)
        assert alpha.tolist() == pytest.approx([1 / 3] * 3) and math.isinf(tau) and alpha.dtype == torch.float64
