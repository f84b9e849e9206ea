"""The beam search against every path."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from adatsq_pipe.stages.numerics.beam import Beam, Choices, Path, nearest_origin, pareto_front


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


@pytest.mark.parametrize(
    ("points", "nearest"),
    [
        ([(3.0, 1000.0), (3.002, 500.0), (3.009, 100.0), (3.01, 0.0)], [1]),
        ([(0.0, 10.0), (1.0, 7.0), (5.5, 5.0), (10.0, 0.0)], [1]),
        ([(10.0, 30.0), (14.0, 24.0), (19.5, 20.5), (20.0, 20.0)], [1]),
        ([(0.0, 100.0), (5.0, 55.0), (62.0, 11.0), (100.0, 0.0)], [1]),
        ([(0.0, 10.0), (4.0, 4.0), (6.5, 0.5), (10.0, 0.0)], [1]),
        ([(10.0, 30.0), (16.0, 26.0), (20.0, 20.0)], [1]),
    ],
)
def test_nearness_is_euclidean_on_scaled_axes(points: list[tuple[float, float]], nearest: list[int]) -> None:
    front = [Path(choices=(i,), price=p, error=e) for i, (p, e) in enumerate(points)]
    (p0, p1), (e0, e1) = (min(p for p, _ in points), max(p for p, _ in points)), (points[-1][1], points[0][1])
    distances = [math.hypot((p - p0) / (p1 - p0), (e - e0) / (e1 - e0)) for p, e in points]
    assert [p.choices[0] for p in nearest_origin(front, 1)] == [distances.index(min(distances))] == nearest


def test_of_equal_paths_the_first_choices_stay() -> None:
    paths = [Path(choices=(i,), price=1.0, error=2.0) for i in (2, 0, 1)]
    assert [p.choices for p in pareto_front(paths)] == [(0,)]
    paths = [Path(choices=(0,), price=1.0, error=5.0), Path(choices=(1,), price=1.0, error=2.0)]
    assert [p.choices for p in pareto_front(paths)] == [(1,)]


@pytest.mark.parametrize("budget", [3.0, 3.2, 3.7, 4.4])
def test_asked_are_exactly_the_extensions_that_can_still_end_within_the_budget(budget: float) -> None:
    prices = ((3.0, 3.6, 4.4), (3.1, 3.0, 5.0), (4.0, 3.3, 3.0), (3.0, 4.0, 3.5))
    beam = Beam(prices=prices, budget=budget, width=1000)
    while not beam.finished:
        slow = []
        for path in beam.paths:
            for c in range(3):
                tails = itertools.product(range(3), repeat=3 - beam.level)
                wholes = [(*path.choices, c, *tail) for tail in tails]
                if any(sum(prices[t][i] for t, i in enumerate(w)) <= budget * 4 + 1e-9 for w in wholes):
                    slow.append((*path.choices, c))
        assert beam.ask() == slow
        beam = beam.tell({choices: _error(choices) for choices in slow})
    for path in beam.paths:
        assert path.price == pytest.approx(sum(prices[t][c] for t, c in enumerate(path.choices)))
        assert path.error == pytest.approx(sum(_error(path.choices[: t + 1]) for t in range(4)))


def test_a_budget_that_is_met_exactly_is_allowed() -> None:
    assert 3.1 + (3.1 + 3.7) > 3.3 * 3, "sums in binary exceed the budget by a last digit"
    beam = Beam(prices=((3.1,), (3.1,), (3.7,)), budget=3.3, width=1)
    while not beam.finished:
        beam = beam.tell(dict.fromkeys(beam.ask(), 1.0))
    assert [p.choices for p in beam.paths] == [(0, 0, 0)]


def test_the_front_is_that_before_the_cut() -> None:
    beam = Beam(prices=((3.0, 3.6, 4.4),), budget=5.0, width=1).tell({(0,): 3.0, (1,): 1.0, (2,): 0.5})
    assert [p.choices for p in beam.front] == [(0,), (1,), (2,)] and [p.choices for p in beam.paths] == [(1,)]
