"""Lagrangian allocations against all allocations there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from adatsq_pipe.stages.numerics.lagrange import Walk

WIDTHS = (2, 3, 4, 6)


def _costs(seed: int, items: int) -> np.ndarray:
    """Random costs that fall with the width, not all of them convex."""
    random = np.random.default_rng(seed)
    falls = random.exponential(1, (items, len(WIDTHS))) * 4.0 ** -np.arange(len(WIDTHS))
    return np.cumsum(falls[:, ::-1], 1)[:, ::-1]


def _all_of(cost: np.ndarray, price: np.ndarray) -> list[tuple[float, float, tuple[int, ...]]]:
    """(mean price, cost, choice) of every allocation."""
    share = price / price.mean()
    found = []
    for choice in itertools.product(range(len(WIDTHS)), repeat=len(cost)):
        bits = sum(WIDTHS[k] * s for k, s in zip(choice, share, strict=True)) / len(cost)
        found.append((bits, sum(cost[i, k] for i, k in enumerate(choice)), choice))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("priced", [False, True], ids=["alike", "priced"])
def test_at_every_multiplier_no_other_allocation_has_a_smaller_lagrangian(seed: int, priced: bool) -> None:
    cost = _costs(seed, 5)
    price = np.random.default_rng(seed + 50).uniform(0.5, 3, 5) if priced else np.ones(5)
    walk, share = Walk.of(cost, WIDTHS, price), price / price.mean()
    for multiplier in (0.001, 0.01, 0.07, 0.3, 1.0):
        choice = walk.at_multiplier(multiplier)
        own = sum(cost[i, k] + multiplier * share[i] * WIDTHS[k] for i, k in enumerate(choice))
        least = min(c + multiplier * 5 * bits for bits, c, _ in _all_of(cost, price))
        assert own == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("priced", [False, True], ids=["alike", "priced"])
def test_a_budget_is_kept_and_at_its_corners_the_allocation_is_the_best_there_is(seed: int, priced: bool) -> None:
    cost = _costs(seed, 5)
    price = np.random.default_rng(seed + 50).uniform(0.5, 3, 5) if priced else np.ones(5)
    walk, everything = Walk.of(cost, WIDTHS, price), _all_of(cost, price)
    corners = {walk.mean(walk.at_multiplier(m)) for m in np.geomspace(1e-5, 10, 60)}
    for budget in [*corners, 2.3, 3.17, 4.0, 5.5, 6.0]:
        choice, multiplier = walk.at_budget(budget)
        bits, own = walk.mean(choice), float(cost[np.arange(5), choice].sum())
        assert bits <= budget + 1e-9 and multiplier >= 0
        least = min(c for b, c, _ in everything if b <= budget + 1e-9)
        whole = walk.at_multiplier(multiplier)
        assert (whole <= choice).all(), "its whole segments, before what is left is filled"
        if budget in corners and budget < max(corners):
            assert walk.mean(whole) == pytest.approx(budget), "a corner is reached by whole segments alone"
        if budget in corners:
            assert own == pytest.approx(least, rel=1e-9)
        lower = max(c for c in corners if c <= budget + 1e-9) if min(corners) <= budget else None
        if lower is not None:
            assert own <= float(cost[np.arange(5), walk.at_budget(lower)[0]].sum()) + 1e-12, "more bits never cost more"
        raises = [
            (i, k) for i in range(5) for k in range(choice[i] + 1, len(WIDTHS)) if cost[i, k] < cost[i, choice[i]]
        ]
        share = price / price.mean()
        assert all(bits + share[i] * (WIDTHS[k] - WIDTHS[choice[i]]) / 5 > budget for i, k in raises), "nothing fits"


def test_a_cost_that_rises_with_the_width_is_never_paid_for() -> None:
    walk = Walk.of(np.array([[1.0, 3.0, 2.0, 1.5], [8.0, 4.0, 2.0, 0.5]]), WIDTHS)
    choice, _ = walk.at_budget(6.0)
    assert [WIDTHS[k] for k in choice] == [2, 6]


def test_a_budget_below_the_smallest_width_and_shapes_that_do_not_fit_are_refused() -> None:
    walk = Walk.of(_costs(0, 3), WIDTHS)
    assert [WIDTHS[k] for k in walk.at_budget(2.0)[0]] == [2, 2, 2]
    with pytest.raises(ValueError, match=r"1\.9 mean bits is below the fewest there are, 2"):
        walk.at_budget(1.9)
    with pytest.raises(ValueError, match=r"do not fit 3 items at widths \[2, 3\]"):
        Walk.of(_costs(0, 3), (2, 3))
    with pytest.raises(ValueError, match="do not fit"):
        Walk.of(_costs(0, 3), (2, 4, 3, 6))
