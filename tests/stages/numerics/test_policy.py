"""Policies, and budgets divided by slow loops and by every possible choice."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import pytest
import torch

from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, Policy, allocate_greedily, bits_by_fisher, rounding_error


def test_policies_are_values() -> None:
    a, b = Policy(((3, 4), (8, 3))), Policy(((3, 4), (8, 3)))
    assert a == b and a.digest == b.digest != Policy.uniform(2, 2, 3).digest
    assert a.mean == 4.5
    assert a.weighted_mean([3.0, 1.0]) == pytest.approx((3 * 3 + 4 + 8 * 3 + 3) / 8)


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


def test_greedy_allocation_is_that_of_a_slow_obvious_loop() -> None:
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


def test_bits_go_where_they_reduce_the_error_most() -> None:
    errors = [[1.0, 0.9, 0.0], [5.0, 1.0, 0.9], [0.1, 0.1, 0.1]]
    assert allocate_greedily(errors, (3, 4, 8), 3.0) == (3, 3, 3)
    assert allocate_greedily(errors, (3, 4, 8), 3.4) == (3, 4, 3)
    assert allocate_greedily(errors, (3, 4, 8), 5.0) == (8, 4, 3)
    assert allocate_greedily(errors, (3, 4, 8), 8.0) == (8, 8, 3)
    with pytest.raises(ValueError, match="below the fewest"):
        allocate_greedily(errors, (3, 4, 8), 2.5)


def test_a_policy_turns_itself() -> None:
    policy = Policy(((3, 4, 16), (8, 3, 16)))
    assert (policy.steps, policy.layers) == (2, 3)
    assert policy.of_step(1) == (8, 3, 16) and policy.of_layer(0) == (3, 8) and policy.of_layer(2) == (16, 16)
    assert Policy.uniform(2, 3, 4).bits == ((4, 4, 4), (4, 4, 4))
    assert policy.digest == hashlib.sha256(b"((3, 4, 16), (8, 3, 16))").hexdigest()
    assert policy.weighted_mean([1.0, 2.0, 0.0]) == pytest.approx((3 + 8 + 8 + 6) / 6)
    assert WEIGHT_ONLY == 16


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ((), "at least one step"),
        (((),), "at least one step and one layer"),
        (((3, 4), (3,)), "step 1 of a policy has 1 layers, step 0 has 2"),
        (((3,), (3, 4)), "step 1 of a policy has 2 layers, step 0 has 1"),
        (((3, 4), (3, 1)), "step 1 of a policy has 1 bits; bits lie in 2..16"),
        (((3, 17),), "step 0 of a policy has 17 bits"),
    ],
)
def test_what_is_no_policy_is_refused(bits: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(bits)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_rounding_errors_are_in_proportion_to_those_of_a_uniform_variable(bits: int) -> None:
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    error = float(((x * (2**bits - 1)).round() / (2**bits - 1) - x).square().mean())
    assert rounding_error(bits) == pytest.approx(12 * error, rel=1e-3)


def test_sharpness_is_first_within_a_step_then_across_steps() -> None:
    fisher = [[1.0, 3.0], [100.0, 300.0]]
    assert bits_by_fisher(fisher, (3, 8), 5.5, (0.0, 1.0)) == ((3, 3), (8, 8)), "steps alone"
    assert bits_by_fisher(fisher, (3, 8), 5.5, (1.0, 0.0)) == ((3, 8), (3, 8)), "layers alone"


def test_a_budget_that_is_met_exactly_is_used() -> None:
    assert allocate_greedily([[1.0, 0.5]] * 10, (3, 4), 3.1) == (4, *[3] * 9)
    assert allocate_greedily([[1.0, 0.5]] * 10, (3, 4), 3.3) == (4, 4, 4, *[3] * 7)
    assert allocate_greedily([[1.0, 1.0]], (3, 4), 8.0) == (3,), "a raise without gain is not made"
    assert allocate_greedily([[1.0, 1.0, 0.0]], (3, 4, 8), 8.0) == (8,), "a raise may skip a width"
