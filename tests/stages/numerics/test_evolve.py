"""The evolutionary search against every possible choice."""

from __future__ import annotations

import itertools
import random

import pytest

from adatsq_pipe.stages.numerics import evolve as evolution
from adatsq_pipe.stages.numerics.evolve import evolve


@pytest.mark.parametrize("least", [16.0, 32.0, 48.0, 64.0])
def test_the_best_of_all_allowed_choices_is_found(least: float) -> None:
    draw = random.Random(int(least))
    sizes = [[16, 32, 64]] * 5
    errors = [[draw.random() * size for size in layer] for layer in sizes]
    start = (2,) * 5
    every = [
        (sum(errors[layer][i] for layer, i in enumerate(genes)), genes)
        for genes in itertools.product(range(3), repeat=5)
        if sum(sizes[layer][i] for layer, i in enumerate(genes)) >= 5 * least
    ]
    assert evolve(errors, sizes, start, least_mean=least) == min(every)[1]


def test_a_start_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(ValueError, match="the start has a mean size below 33"):
        evolve([[1.0, 2.0]] * 2, [[32, 64]] * 2, (0, 0), least_mean=33)


def test_the_least_mean_is_kept_where_smaller_sizes_would_be_better() -> None:
    """Option 0 is best for each layer, but only one of three may take it."""
    errors, sizes = [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]], [[32, 64]] * 3
    assert evolve(errors, sizes, (1, 1, 1), least_mean=(32 + 64 + 64) / 3) == (1, 1, 0)


@pytest.mark.parametrize("seed", range(4))
def test_more_generations_never_lose_the_best(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generations of the same seed begin alike, so a longer search has seen all that a shorter one has."""
    draw = random.Random(seed)
    errors = [[draw.random() for _ in range(4)] for _ in range(12)]
    monkeypatch.setattr(evolution, "POPULATION", 4)
    reached = []
    for generations in range(12):
        monkeypatch.setattr(evolution, "GENERATIONS", generations)
        genes = evolve(errors, [[1, 2, 3, 4]] * 12, (0,) * 12, least_mean=1, seed=seed)
        reached.append(sum(errors[layer][i] for layer, i in enumerate(genes)))
    assert reached[0] == sum(row[0] for row in errors), "no generation: the start"
    assert reached == sorted(reached, reverse=True) and reached[-1] < reached[0]


def test_a_start_of_exactly_the_least_mean_is_allowed() -> None:
    assert 29 / 7 * 7 > 29, "the mean times the number of layers exceeds the sum by a last digit"
    assert evolve([[1.0]] * 7, [[5]] + [[4]] * 6, (0,) * 7, least_mean=29 / 7) == (0,) * 7
