"""One width a step: against every policy there is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from adatsq_pipe.stages.numerics.bisection import bits_by_bisection

WIDTHS = (3, 4, 8)


def _errors(seed: int, steps: int) -> list[list[float]]:
    """Errors that fall with the bits, of steps that differ by up to a hundredfold."""
    drawn = random.Random(seed)
    return [sorted((10 ** drawn.uniform(-2, 0) for _ in WIDTHS), reverse=True) for _ in range(steps)]


def _total(errors: Sequence[Sequence[float]], bits: Sequence[int]) -> float:
    return sum(row[WIDTHS.index(b)] for row, b in zip(errors, bits, strict=True))


def _mean(bits: Sequence[int], weights: Sequence[int]) -> float:
    return sum(b * w for b, w in zip(bits, weights, strict=True)) / sum(weights)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1, 1, 1), (4, 4, 4, 1, 1, 1)])
@pytest.mark.parametrize("seed", range(12))
def test_no_policy_of_its_mean_or_fewer_bits_errs_less(seed: int, weights: tuple[int, ...]) -> None:
    """At every mean that some price of a bit leads to, the bisection finds the best of all 729 policies; between two
    such means it errs no more than the best at the lower, and no policy has more bits than the budget."""
    errors = _errors(seed, 6)
    every = list(itertools.product(WIDTHS, repeat=6))
    lines = [(_mean(bits, weights), _total(errors, bits)) for bits in every]
    on_hull = sorted({min(lines, key=lambda p: p[1] + price * p[0]) for price in _prices(lines)})
    assert len(on_hull) > 4
    for mean, least in on_hull:
        found = bits_by_bisection(errors, WIDTHS, mean, weights)
        assert _mean(found, weights) <= mean + 1e-9
        assert _total(errors, found) == pytest.approx(least) == min(e for m, e in lines if m <= mean + 1e-9)
    for budget in (3.0, 3.3, 3.7, 4.0, 5.1, 6.6, 8.0):
        found = bits_by_bisection(errors, WIDTHS, budget, weights)
        assert _mean(found, weights) <= budget + 1e-9
        assert _total(errors, found) <= min(e for m, e in on_hull if m <= budget + 1e-9) + 1e-12


def _prices(points: Sequence[tuple[float, float]]) -> list[float]:
    """A price between any two at which the best policy can change."""
    slopes = sorted({(a[1] - b[1]) / (b[0] - a[0]) for a in points for b in points if b[0] - a[0] > 1e-9})
    slopes = [s for s in slopes if s > 0]
    chosen = slopes[:: max(1, len(slopes) // 3000)]
    return [(a + b) / 2 for a, b in itertools.pairwise([0.0, *chosen, 2 * chosen[-1]])]


def test_what_is_left_of_a_budget_buys_the_raise_of_largest_gain() -> None:
    errors = [[10.0, 9.0, 0.0], [5.0, 1.0, 0.9]]
    assert bits_by_bisection(errors, WIDTHS, 3.0) == (3, 3)
    assert bits_by_bisection(errors, WIDTHS, 3.5) == (3, 4)
    assert bits_by_bisection(errors, WIDTHS, 4.0) == (4, 4)
    assert bits_by_bisection(errors, WIDTHS, 6.0) == (8, 4)


def test_bits_that_gain_nothing_are_not_spent() -> None:
    assert bits_by_bisection([[1.0, 0.5, 0.5], [0.2, 0.3, 0.1]], WIDTHS, 8.0) == (4, 8)


def test_a_budget_below_the_fewest_bits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"budget of 2\.5 mean bits is below the fewest there are, 3"):
        bits_by_bisection([[1.0, 0.5, 0.1]], WIDTHS, 2.5)
