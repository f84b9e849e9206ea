"""The beam search against every path."""

from __future__ import annotations

import itertools

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
