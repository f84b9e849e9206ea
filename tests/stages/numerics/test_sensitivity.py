"""Fisher scores against autograd, temporal weights against their definition."""

from __future__ import annotations

import math

import pytest
import torch

from adatsq_pipe.stages.numerics.sensitivity import effective_steps, squared_gradient_mean, temporal_weights


def test_squared_gradient_is_that_of_autograd() -> None:
    x, w = torch.randn(6, 5), torch.randn(3, 5, requires_grad=True)
    y = x @ w.T
    g = torch.randn_like(y)
    y.backward(g)
    assert w.grad is not None
    assert float(squared_gradient_mean(x, g)) == pytest.approx(float(w.grad.square().mean()), rel=1e-5)


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
