"""16-bit ends: the policy's whole matrix and its mean, and the ends that a budget pays for."""

from __future__ import annotations

from pathlib import Path

import pytest

from adatsq_pipe.stages.allocation import search
from adatsq_pipe.stages.allocation.first_last import ends_within
from adatsq_pipe.stages.base.errors import StageError
from tests.support.made_executor import TableExecutor
from tests.support.made_store import MadeStore, make_store

STEPS = 10


def _store(folder: Path, **recipe: object) -> MadeStore:
    store = make_store(folder, calls=range(STEPS), recipe={"method": "first_last_n", **recipe}, search={"budget": 5.0})
    store.write_survey()
    return store


def _front(store: MadeStore) -> dict[str, object]:
    search.run(
        store.context, TableExecutor(lambda path, place: 0.0, lambda path, place: 0.0, []), lambda done, of: None
    )
    value: dict[str, object] = store.manifest("search").read("front").value
    return value


def test_the_ends_have_16_bits_and_count_as_16(tmp_path: Path) -> None:
    """The last of the three layers is fed one vector a sample: its activations are not rounded anyway."""
    value = _front(_store(tmp_path, end_steps=2))
    assert value["policy"] == [[16, 16, 16]] * 2 + [[4, 4, 16]] * 6 + [[16, 16, 16]] * 2
    assert value["mean_bits"] == value["mac_weighted_bits"] == (4 * 16 + 6 * 4) / 10
    assert (value["front"], value["rollout_error"]) == (1, None)


def test_a_budget_pays_for_as_many_ends_as_it_can(tmp_path: Path) -> None:
    """With 2 bits between, a step at either end of ten costs 2.8 mean bits."""
    value = _front(_store(tmp_path, end_steps=0, activation_bits=2))
    assert [row[0] for row in value["policy"]] == [16] + [2] * 8 + [16]  # type: ignore[attr-defined]
    assert value["mean_bits"] == pytest.approx(4.8)


@pytest.mark.parametrize("steps", [4, 10, 25, 28, 50])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_one_more_end_would_exceed_the_budget(steps: int, bits: int) -> None:
    for budget in (3.52, 4.0, 5.0, 8.0):
        means = {n: (2 * n * 16 + (steps - 2 * n) * bits) / steps for n in range(1, steps)}
        assert ends_within(budget, steps, bits) == max((n for n, mean in means.items() if mean <= budget), default=0)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"end_steps": 0, "activation_bits": 4}, "5 mean bits pays for no 16-bit step .* of 10 steps .* needs 6.4"),
        ({"end_steps": 5}, "end_steps is 5, and of 10 steps that leaves none .* at most 4"),
    ],
)
def test_ends_that_cannot_be_are_refused(recipe: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=words):
        _front(_store(tmp_path, **recipe))
