"""Which point of the front a model gets, against fronts written by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from adatsq_pipe.stages.allocation.front import policy_of
from adatsq_pipe.stages.allocation.points import (
    AssembleSettings,
    Front,
    Point,
    check_mean_bits,
    decibels,
    front_of,
    point_of,
)
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.stage import all_stages
from adatsq_pipe.storage import tables
from tests.support.made_store import MadeStore, make_store

WEIGHTS = 0.0005
OWN = (4, 3, 4, 5, 4, 4)
"""What search chose, 4 bits on average; three steps of two rounded layers, and one layer that is not rounded."""


def _row(bits: tuple[int, ...], predicted: float | None, measured: float | None = None) -> dict[str, Any]:
    mean = sum(bits) / len(bits)
    return {
        "mean_bits": mean,
        "mac_weighted_bits": mean + 0.25,
        "predicted_error": predicted,
        "rollout_error": measured,
        "bits": list(bits),
    }


ROWS = [
    _row(OWN, 0.002, 0.003),
    _row((8, 8, 8, 8, 8, 8), 0.0006),
    _row((3, 3, 3, 3, 3, 3), 0.01),
    _row((3, 3, 3, 4, 3, 3), 0.008),
    _row((4, 3, 3, 4, 3, 3), 0.006),
    _row((4, 4, 4, 4, 3, 4), 0.0025),
    _row((6, 4, 4, 4, 4, 4), 0.0015),
    _row((5, 4, 4, 5, 4, 4), 0.0018),
]
"""In no order; their mean bits are 4, 8, 3, 3 1/6, 3 2/6, 3 5/6, 4 2/6 twice."""


def _policy(bits: tuple[int, ...]) -> list[list[int]]:
    return [[*bits[2 * t : 2 * t + 2], 16] for t in range(3)]


def _value(**changes: Any) -> dict[str, Any]:
    costs = {"mean_bits": 4.0, "mac_weighted_bits": 4.25, "rollout_error": 0.003, "predicted_error": 0.002}
    return {"policy": _policy(OWN), **costs, "front": len(ROWS), "weights_error": WEIGHTS, **changes}


def _store(folder: Path, method: str = "endpoint", **assemble: float) -> MadeStore:
    store = make_store(folder, recipe={"method": method}, assemble=assemble)
    tables.write(store.manifest("search").open_unit("front") / "front.parquet", ROWS)
    store.manifest("search").commit("front", value=_value())
    return store


@pytest.fixture
def front() -> Front:
    return Front.of(ROWS, _value())


@pytest.mark.parametrize(
    ("bound", "mean"), [(3.0, 3.0), (3.1, 3.0), (3.5, 20 / 6), (4.0, 4.0), (4.2, 4.0), (4.9, 26 / 6), (9.0, 8.0)]
)
def test_a_number_of_bits_is_met_by_the_point_of_most_bits_up_to_it(front: Front, bound: float, mean: float) -> None:
    assert front.at_mean_bits(bound).mean_bits == pytest.approx(mean)


def test_of_equal_bits_the_smaller_error_is_taken(front: Front) -> None:
    assert front.at_mean_bits(4.5).predicted_error == 0.0015


def test_fewer_bits_than_the_front_has_are_refused_with_the_fewest(front: Front) -> None:
    with pytest.raises(ValueError, match=r"no point of the front has 2\.9 mean bits or fewer; the fewest are 3$"):
        front.at_mean_bits(2.9)


@pytest.mark.parametrize(
    ("limit", "mean"),
    [(0.02, 3.0), (0.01, 3.0), (0.009, 19 / 6), (0.0061, 20 / 6), (0.003, 23 / 6), (0.0028, 26 / 6), (0.0006, 8.0)],
)
def test_an_error_is_met_by_the_point_of_fewest_bits(front: Front, limit: float, mean: float) -> None:
    """At .0028 the point of 3 5/6 bits has a prediction of .0025, but 4 bits were rolled out and gave .003."""
    assert front.within_error(limit).mean_bits == pytest.approx(mean)


def test_an_error_that_no_point_meets_is_refused_with_the_best(front: Front) -> None:
    wanted = r"of 0\.0005 \(33\.0 dB\) or less; the least is 0\.0006 \(32\.2 dB\) at 8\.00 mean bits"
    with pytest.raises(ValueError, match=wanted):
        front.within_error(0.0005)


def test_without_predictions_no_error_can_be_asked_for() -> None:
    rows = [{**row, "predicted_error": None} for row in ROWS]
    front = Front.of(rows, _value(predicted_error=None))
    with pytest.raises(ValueError, match="no predicted errors, because the pipeline's loop could not be"):
        front.within_error(1.0)
    assert front.at_mean_bits(3.2).mean_bits == pytest.approx(19 / 6)


def test_every_point_has_a_short_number_that_names_it_and_the_search_s_own_has_zero(front: Front) -> None:
    points = [point for point in front.points if point.predicted_error != 0.0018]
    assert [front.bound_of(point) for point in points] == [3.0, 3.2, 3.4, 3.9, 0.0, 4.4, 8.0]
    for point in points:
        assert point == front.chosen or front.at_mean_bits(front.bound_of(point)) == point


def test_points_that_are_close_need_more_digits() -> None:
    """160 numbers: means that differ by 1/160 lie between the same tenths."""
    rows = [_row((3,) * (160 - n) + (4,) * n, 0.1 - n / 1000) for n in (9, 10, 11)]
    value = _value(policy=[[3] * 151 + [4] * 9])
    front = Front.of(rows, value)
    assert [front.bound_of(point) for point in front.points] == [0.0, 3.063, 3.1]


def test_decibels_are_ten_times_the_negative_logarithm() -> None:
    assert decibels(1e-4) == pytest.approx(40.0) and decibels(0.002) == pytest.approx(-10 * math.log10(0.002))


def test_the_model_has_what_search_chose_or_the_point_that_is_named(tmp_path: Path) -> None:
    own = _store(tmp_path / "own").context
    assert policy_of(own).bits == tuple(map(tuple, _policy(OWN)))
    assert point_of(own) == Point(mean_bits=4.0, mac_weighted_bits=4.25, predicted_error=0.002, rollout_error=0.003)
    picked = _store(tmp_path / "picked", mean_bits=3.5).context
    assert policy_of(picked).bits == ((4, 3, 16), (3, 4, 16), (3, 3, 16))
    point = point_of(picked)
    assert point.mean_bits == pytest.approx((4 + 3 + 3 + 4 + 3 + 3) / 6), "the mean that is shown is the policy's"
    assert (point.predicted_error, point.rollout_error) == (0.006, None)
    assert front_of(picked).weights_error == WEIGHTS and len(front_of(picked).points) == len(ROWS)


def test_what_the_front_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"assemble\.mean_bits: no point of the front has 2\.5 mean bits"):
        point_of(_store(tmp_path / "few", mean_bits=2.5).context)
    with pytest.raises(StageError, match="'trellis' keeps no front of many budgets"):
        front_of(_store(tmp_path / "trellis", method="adatsq").context)


@pytest.mark.parametrize(
    ("method", "bits", "message"),
    [
        (
            "adatsq",
            4.0,
            r"assemble\.mean_bits is 4, and recipe\.allocation = 'trellis' has no front .*; set assemble.mean_bits=0",
        ),
        ("rtn", 3.6, "'uniform' has no front of many budgets"),
        ("vidit_q", 3.6, "'decoupled' has no front of many budgets"),
        ("endpoint", 2.9, r"assemble\.mean_bits is 2\.9, below the fewest bits of the search's front, 3"),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused_before_anything_runs(
    method: str, bits: float, message: str, tmp_path: Path
) -> None:
    made = make_store(tmp_path, recipe={"method": method}, assemble={"mean_bits": bits}).context.settings
    with pytest.raises(StageError, match=message):
        check_mean_bits(made)
    check_mean_bits(make_store(tmp_path / "0", recipe={"method": method}).context.settings)


def test_the_fewest_bits_are_allowed(tmp_path: Path) -> None:
    check_mean_bits(make_store(tmp_path, recipe={"method": "endpoint"}, assemble={"mean_bits": 3.0}).context.settings)
    with pytest.raises(ValidationError, match="mean_bits"):
        AssembleSettings(mean_bits=-1.0)


def test_assemble_alone_depends_on_the_choice_and_on_none_as_before(tmp_path: Path) -> None:
    own, picked = (_store(tmp_path / str(bits), mean_bits=bits).context.settings for bits in (0.0, 3.5))
    stages = all_stages()
    changed = [name for name, stage in stages.items() if stage.reads(own, "m") != stage.reads(picked, "m")]
    assert changed == ["assemble"]
    before = stages["assemble"].reads(own, "m")
    assert isinstance(before, dict) and set(before) == {"model", "call", "world"}
    assert stages["assemble"].reads(picked, "m") == {**before, "mean_bits": 3.5}
