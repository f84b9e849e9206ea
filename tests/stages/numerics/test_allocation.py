"""Temporal weights, policies and the beam."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from adatsq_pipe.stages.numerics.beam import Beam, Choices, Path, nearest_origin, pareto_front
from adatsq_pipe.stages.numerics.metrics import mean_log_error, psnr, relative_error
from adatsq_pipe.stages.numerics.policy import Policy, allocate_greedily, bits_by_fisher, rounding_error
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


@pytest.mark.parametrize("budget", [3.0, 3.25, 4.0, 5.5, 8.0])
@pytest.mark.parametrize("sharpness", [(1.0, 1.0), (1.0, 0.5), (0.5, 0.0)])
def test_bits_by_fisher_are_as_good_as_the_best_for_one_raise_less(
    budget: float, sharpness: tuple[float, float]
) -> None:
    fisher, bits = [[0.1, 5.0, 0.2], [3.0, 0.3, 40.0]], (3, 4, 8)
    rows = bits_by_fisher(fisher, bits, budget, sharpness)
    assert sum(map(sum, rows)) <= budget * 6
    weights = [
        (sum(row) / 3) ** sharpness[1] * (score / (sum(row) / 3)) ** sharpness[0] for row in fisher for score in row
    ]

    def loss(chosen: Sequence[int]) -> float:
        return sum(w * rounding_error(b) for w, b in zip(weights, chosen, strict=True))

    every = [(sum(chosen), loss(chosen)) for chosen in itertools.product(bits, repeat=6)]
    reached = loss([b for row in rows for b in row])
    assert reached <= min((found for spent, found in every if spent <= max(18, budget * 6 - 4)), default=0) + 1e-12
    assert reached >= min(found for spent, found in every if spent <= budget * 6) - 1e-12


def test_the_most_sensitive_layers_get_the_most_bits_and_steps_may_differ_in_layers() -> None:
    (first, second) = bits_by_fisher([[0.1, 50.0, 0.2, 3.0, 0.3], [1e-9]], (3, 4, 8), 4.0, (1.0, 1.0))
    assert first == (3, 8, 3, 4, 3) and second == (3,)
    assert bits_by_fisher([[0.0, 0.0], [0.0, 0.0]], (3, 4, 8), 8.0, (1.0, 0.0)) == ((3, 3), (3, 3)), (
        "no score, no raise"
    )


def test_spending_is_that_of_a_slow_obvious_loop() -> None:
    random = torch.Generator().manual_seed(0)
    bits = (3, 4, 6, 8)
    for budget in (3.0, 3.3, 4.1, 6.0, 9.0):
        errors = torch.rand((9, 4), generator=random).tolist()
        places, left = [0] * 9, (budget - 3) * 9 + 1e-9
        while True:
            raises = [
                ((errors[i][now] - errors[i][to]) / (bits[to] - bits[now]), -i, -to)
                for i, now in enumerate(places)
                for to in range(now + 1, 4)
                if bits[to] - bits[now] <= left and errors[i][to] < errors[i][now]
            ]
            if not raises:
                break
            _, i, to = (abs(x) for x in max(raises))
            left -= bits[int(to)] - bits[places[int(i)]]
            places[int(i)] = int(to)
        assert allocate_greedily(errors, bits, budget) == tuple(bits[place] for place in places)


def test_policies_are_values() -> None:
    a, b = Policy(((3, 4), (8, 3))), Policy(((3, 4), (8, 3)))
    assert a == b and a.digest == b.digest != Policy.uniform(2, 2, 3).digest
    assert a.mean == 4.5
    assert a.weighted_mean([3.0, 1.0]) == pytest.approx((3 * 3 + 4 + 8 * 3 + 3) / 8)


def test_pareto_against_all_pairs() -> None:
    random = torch.Generator().manual_seed(0)
    paths = [
        Path(choices=(i,), price=float(p), error=float(e))
        for i, (p, e) in enumerate(torch.randint(0, 6, (60, 2), generator=random).tolist())
    ]

    def beaten(p: Path) -> bool:
        return any(
            (q.price <= p.price and q.error <= p.error and (q.price, q.error) != (p.price, p.error)) for q in paths
        )

    assert {(p.price, p.error) for p in pareto_front(paths)} == {(p.price, p.error) for p in paths if not beaten(p)}


def test_nearest_to_the_origin() -> None:
    front = [Path(choices=(i,), price=p, error=e) for i, (p, e) in enumerate([(0, 10), (1, 2), (2, 1), (10, 0)])]
    assert [p.choices for p in nearest_origin(front, 2)] == [(1,), (2,)]


def _error(choices: Choices) -> float:
    """A made-up sensitivity: the first steps matter most, more bits help."""
    return (1.0, 0.3, 0.1)[choices[-1]] * 0.5 ** (len(choices) - 1)


def _search(width: int, budget: float, steps: int = 5) -> Beam:
    beam = Beam(prices=((3.0, 3.6, 4.4),) * steps, budget=budget, width=width)
    while not beam.finished:
        beam = beam.tell({choices: _error(choices) for choices in beam.ask()})
    return beam


def test_a_wide_beam_finds_the_optimum_under_the_budget() -> None:
    beam = _search(width=1000, budget=3.5)
    every = itertools.product(range(3), repeat=5)
    inside = [c for c in every if sum((3.0, 3.6, 4.4)[i] for i in c) <= 3.5 * 5 + 1e-9]
    least = min(sum(_error(c[: t + 1]) for t in range(5)) for c in inside)
    assert min(p.error for p in beam.paths) == pytest.approx(least)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("budget", [3.0, 3.1, 3.6])
def test_the_budget_is_kept_and_the_beam_is_narrow(width: int, budget: float) -> None:
    beam = _search(width, budget)
    assert 1 <= len(beam.paths) <= width
    assert all(p.price / 5 <= budget + 1e-9 for p in beam.front)


def test_asking_again_gives_the_same_and_nothing_is_mutated() -> None:
    beam = Beam(prices=((3.0, 4.0),) * 2, budget=4.0, width=2)
    asked = beam.ask()
    beam.tell({c: _error(c) for c in asked})
    assert beam.ask() == asked and beam.level == 0


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
