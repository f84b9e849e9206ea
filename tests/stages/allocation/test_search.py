"""The search against brute force: all paths of a three-step trellis, with errors from a made-up table."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from adatsq_pipe.stages.allocation import search
from adatsq_pipe.stages.allocation.digest import digest_of
from adatsq_pipe.stages.allocation.front import policy_of
from adatsq_pipe.stages.allocation.trellis import Trellis
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.stage import all_stages
from adatsq_pipe.storage import tables
from tests.support.made_context import FIRST, SECOND, SHAPES
from tests.support.made_executor import Interrupted, TableExecutor
from tests.support.made_store import MadeStore, make_store

Choices = tuple[int, ...]
CANDIDATES = ((0.0, 0.0), (1.0, 1.0), (2.0, 0.0))
SALT = 2996
"""With it the front of separable errors has several paths."""
SAMPLES = [2, 1]
"""Captions of the two slices of a batch of three."""
EVERY = list(itertools.product(range(3), repeat=3))


def _store(folder: Path, **changes: Any) -> MadeStore:
    asked = {"candidates": CANDIDATES, "budget": 4.5, "width": 100, "samples": 2, "rollout_prompts": 3, **changes}
    data = {"prompts": [f"caption {i}" for i in range(6)], "batch": 3}
    store = make_store(folder, seed=5, data=data, search=asked)
    store.scores = torch.tensor([[5.0, 3.0, 0.0], [1.0, 0.5, 0.0], [0.1, 2.0, 0.0]]).double().expand(2, 3, 3)
    store.write_survey()
    store.write_scores()
    return store


def _drawn(*what: object) -> float:
    """A number between 0.1 and 1.1 that belongs to `what`."""
    return 0.1 + random.Random(repr(what)).random()


def _separable(path: Choices, place: int) -> float:
    """An error that depends on the step and its candidate alone: then no pruning loses a best path."""
    return _drawn("step", SALT, len(path), path[-1], place)


def _entangled(path: Choices, place: int) -> float:
    """An error that depends on the whole path."""
    return _drawn("path", path, place)


def _rollout(path: Choices, place: int) -> float:
    return math.log(_drawn("rollout", path, place) * 1e-3)


def _mean(table: Any, path: Choices) -> float:
    """The error on both slices, each caption counting alike."""
    return float((2 * table(path, 0) + table(path, 1)) / 3)


def _sum(table: Any, path: Choices) -> float:
    return sum(_mean(table, path[: t + 1]) for t in range(len(path)))


def _mean_bits(space: Trellis, path: Choices) -> float:
    bits = [b for t, c in enumerate(path) for b in space.policies[c][t]]
    return sum(bits) / len(bits)


def _beaten(path: Choices, others: Mapping[Choices, tuple[float, float]]) -> bool:
    """Whether another path has no more bits and no more error, and less of one of them."""
    price, error = others[path]
    return any(
        p <= price + 1e-12 and e <= error + 1e-12 and (p < price - 1e-12 or e < error - 1e-12)
        for p, e in others.values()
    )


def _run(store: MadeStore, executor: TableExecutor) -> list[tuple[int, int]]:
    reports: list[tuple[int, int]] = []
    search.run(store.context, executor, lambda done, of: reports.append((done, of)))
    return reports


def _rows(store: MadeStore) -> list[dict[str, Any]]:
    return tables.read(store.manifest("search").local_folder("front") / "front.parquet")


def test_the_front_is_that_of_all_27_paths(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _run(store, TableExecutor(_separable, _rollout, SAMPLES))
    space = Trellis(store.context)
    every = {path: (_mean_bits(space, path), _sum(_separable, path)) for path in EVERY}
    inside = {path: found for path, found in every.items() if found[0] <= 4.5 + 1e-9}
    assert 3 < len(inside) < 27, "some paths are over the budget, some are not"
    wanted = {path: found for path, found in inside.items() if not _beaten(path, inside)}
    rows = _rows(store)
    front = {tuple(row["choices"]): row for row in rows if row["trellis_error"] is not None}
    assert set(front) == set(wanted) and len(front) >= 3
    for path, row in front.items():
        assert (row["mean_bits"], row["trellis_error"]) == pytest.approx(wanted[path], rel=1e-12)
        assert row["digest"] == digest_of(path)
        assert row["bits"] == [b for t, c in enumerate(path) for b in space.policies[c][t]]
    assert {tuple(row["choices"]) for row in rows} == set(wanted) | {(c, c, c) for c in range(3)}
    assert len(rows) == len({tuple(row["choices"]) for row in rows}), "no path twice"


def test_the_policy_is_the_path_whose_pictures_are_nearest(tmp_path: Path) -> None:
    store = _store(tmp_path)
    executor = TableExecutor(_separable, _rollout, SAMPLES)
    _run(store, executor)
    space, rows = Trellis(store.context), _rows(store)
    tried = {tuple(row["choices"]) for row in rows}
    rolled_out = [key for key in executor.asked if key.startswith("rollout/")]
    assert sorted(rolled_out) == sorted(f"rollout/{'.'.join(map(str, p))}/{i}" for p in tried for i in (0, 1))
    errors = {path: math.exp(_mean(_rollout, path)) for path in tried}
    for row in rows:
        assert row["rollout_error"] == pytest.approx(errors[tuple(row["choices"])], rel=1e-12)
    best = min(tried, key=lambda path: errors[path])
    assert best != max(tried, key=lambda path: _mean_bits(space, path)), "it is not just that of the most bits"
    value = store.manifest("search").read("front").value
    bits = [space.policies[c][t] for t, c in enumerate(best)]
    assert value["policy"] == [[*row, 16] for row in bits]
    assert policy_of(store.context).bits == tuple((*row, 16) for row in bits)
    assert value["rollout_error"] == pytest.approx(errors[best]) and value["front"] == len(rows)
    assert value["mean_bits"] == pytest.approx(_mean_bits(space, best))
    macs = [SHAPES[FIRST][0] * SHAPES[FIRST][1], SHAPES[SECOND][0] * SHAPES[SECOND][1]]
    weighted = sum(b * m for row in bits for b, m in zip(row, macs, strict=True)) / (3 * sum(macs))
    assert value["mac_weighted_bits"] == pytest.approx(weighted)


def test_of_equal_rollouts_the_fewest_bits_win_and_then_the_first_choices(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _run(store, TableExecutor(_separable, lambda path, place: -3.0, SAMPLES))
    best = min((row["mean_bits"], row["choices"]) for row in _rows(store))
    assert store.manifest("search").read("front").value["mean_bits"] == pytest.approx(best[0])
    space = Trellis(store.context)
    assert policy_of(store.context).bits == tuple((*space.policies[c][t], 16) for t, c in enumerate(best[1]))


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("budget", [3.4, 4.5, 5.0])
def test_a_narrow_beam_keeps_the_paths_nearest_the_origin(width: int, budget: float, tmp_path: Path) -> None:
    store = _store(tmp_path, width=width, budget=budget)
    executor = TableExecutor(_entangled, _rollout, SAMPLES)
    _run(store, executor)
    space = Trellis(store.context)
    kept: list[Choices] = [()]
    for step in range(3):
        grown = {}
        for path in [(*parent, c) for parent in kept for c in range(3)]:
            spent = sum(sum(space.policies[c][t]) for t, c in enumerate(path))
            least = sum(min(sum(policy[t]) for policy in space.policies) for t in range(step + 1, 3))
            if (spent + least) / 6 <= budget + 1e-9:
                grown[path] = (spent / 6, _sum(_entangled, path))
        asked = {key for key in executor.asked if key.startswith("path/") and key.count(".") == step}
        assert asked == {f"path/{'.'.join(map(str, path))}/{i}" for path in grown for i in (0, 1)}
        front = {path: found for path, found in grown.items() if not _beaten(path, grown)}
        (low, high), (near, far) = [(min(x), max(x)) for x in zip(*front.values(), strict=True)]

        def distance(
            path: Choices, front: Any = front, ends: tuple[float, ...] = (low, high, near, far)
        ) -> tuple[float, Choices]:
            a, b = front[path][0] - ends[0], front[path][1] - ends[2]
            width, height = (ends[1] - ends[0]) or 1, (ends[3] - ends[2]) or 1
            return (a / width) ** 2 + (b / height) ** 2, path

        kept = sorted(front, key=distance)[:width]
    rows = _rows(store)
    assert {tuple(row["choices"]) for row in rows if row["trellis_error"] is not None} == set(front)
    tried = {tuple(row["choices"]) for row in rows if row["rollout_error"] is not None}
    assert tried == {*kept, *((c, c, c) for c in range(3))}, "survivors and even paths are rolled out, no other"
    assert store.manifest("search").read("front").value["front"] == len(rows) >= len(tried)


def test_a_search_that_was_stopped_reads_its_levels_and_evaluates_no_path_twice(tmp_path: Path) -> None:
    store, whole = _store(tmp_path / "stopped"), _store(tmp_path / "whole")
    full = TableExecutor(_separable, _rollout, SAMPLES)
    assert _run(whole, full)[0] == (1, 4)
    of_level = [sum(key.startswith("path/") and key.count(".") == step for key in full.asked) for step in range(3)]
    first = TableExecutor(_separable, _rollout, SAMPLES, stop=of_level[0] + of_level[1] + 3)
    with pytest.raises(Interrupted):
        _run(store, first)
    done = store.manifest("search").read("level/001").value
    assert done == {
        digest_of(path): pytest.approx(_mean(_separable, path))
        for path in {tuple(int(c) for c in key.split("/")[1].split(".")) for key in first.asked}
        if len(path) == 2
    }
    second = TableExecutor(_separable, _rollout, SAMPLES)
    reports = _run(store, second)
    assert not set(first.asked) & set(second.asked)
    assert sorted(first.asked + second.asked) == sorted(full.asked)
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert _rows(store) == _rows(whole)
    third = TableExecutor(_separable, _rollout, SAMPLES)
    _run(store, third)
    assert not third.asked, "what is finished asks for nothing"


def test_a_finished_level_is_read_from_its_unit(tmp_path: Path) -> None:
    store = _store(tmp_path)
    manifest = store.manifest("search")
    manifest.open_unit("level/000")
    errors = {digest_of((c,)): [7.0, 8.0, 9.0][c] for c in range(3)}
    manifest.commit("level/000", value=errors)
    executor = TableExecutor(_separable, _rollout, SAMPLES)
    _run(store, executor)
    assert not [key for key in executor.asked if key.startswith("path/") and "." not in key]
    for row in _rows(store):
        path = tuple(row["choices"])
        if row["trellis_error"] is not None:
            rest = sum(_mean(_separable, path[: t + 1]) for t in (1, 2))
            assert row["trellis_error"] == pytest.approx([7.0, 8.0, 9.0][path[0]] + rest)


def test_a_level_carries_what_its_paths_cost_and_the_paths_are_removed(tmp_path: Path) -> None:
    store = _store(tmp_path)
    executor = TableExecutor(_separable, _rollout, SAMPLES)
    executor.micro_batches = {
        "path/0/0": {"from": 2, "to": 1},
        "path/1/0": {"from": 4, "to": 1},
        "path/2/1": {"from": 8, "to": 4},
    }
    _run(store, executor)
    manifest = store.manifest("search")
    level = manifest.read("level/000")
    units = sum(key.startswith("path/") and "." not in key for key in executor.asked)
    assert level.seconds["model"] == 20.0 * units and level.seconds["algebra"] == 3.0 * units
    assert level.calls == pytest.approx(units / 2), "a call on two thirds of the captions is two thirds"
    assert level.seconds["total"] == pytest.approx(1000.0 * units, rel=0.01)
    assert level.micro_batch == {"from": 4, "to": 1}, "the halving that went furthest"
    assert manifest.read("level/001").micro_batch is None
    assert not [unit for unit in manifest.units() if unit.startswith("path/")]


def test_more_batches_than_there_are_captions_for_are_refused(tmp_path: Path) -> None:
    store = _store(tmp_path, batches=3)
    with pytest.raises(StageError, match=r"search\.batches is 3, and the 6 calibration captions make 2 of 3; lower"):
        _run(store, TableExecutor(_separable, _rollout, SAMPLES))


def test_how_many_units_a_search_has_is_known_unless_a_beam_decides_it(tmp_path: Path) -> None:
    expected = all_stages()["search"].expected
    assert expected(_store(tmp_path).context) is None
    assert expected(_lagrangian(tmp_path / "beam", beam=True).context) is None
    sliced = _lagrangian(tmp_path / "slices", samples=1)
    assert expected(sliced.context) == 2 * 2 + 1, "two paths on two captions each, and the front"
    decoupled = make_store(tmp_path / "decoupled", recipe={"method": "vidit_q"})
    decoupled.write_survey()
    assert expected(decoupled.context) == 2 + 1, "two layers whose inputs are rounded, and the front"


def test_without_a_search_the_recipe_s_bits_stand_everywhere(tmp_path: Path) -> None:
    store = make_store(tmp_path, recipe={"method": "rtn", "activation_bits": 6})
    store.write_survey()
    executor = TableExecutor(_separable, _rollout, SAMPLES)
    assert _run(store, executor) == [(1, 1)] and not executor.asked
    assert all_stages()["search"].expected(store.context) == len(list(store.manifest("search").units())) == 1
    assert store.manifest("search").read("front").value == {
        "policy": [[6, 6, 16]] * 3,
        "mean_bits": 6.0,
        "mac_weighted_bits": 6.0,
        "rollout_error": None,
        "front": 1,
    }


def test_a_search_depends_on_its_settings_and_uniform_bits_on_nothing_but_themselves(tmp_path: Path) -> None:
    reads = all_stages()["search"].reads
    searched = _store(tmp_path).context.settings
    found = reads(searched, "model")
    assert isinstance(found, dict) and set(found) == {"compute", "search", "allocation"}
    assert found["allocation"] == "trellis" and found["search"]["budget"] == 4.5 and found["search"]["samples"] == 2
    uniform = make_store(tmp_path / "u", recipe={"method": "rtn", "activation_bits": 6}).context.settings
    assert reads(uniform, "model") == {"allocation": "uniform", "activation_bits": 6}


def _lagrangian(folder: Path, obstacle: str = "", **search: object) -> MadeStore:
    store = make_store(folder, recipe={"method": "endpoint"}, search={"budget": 4.5, "rollout_prompts": 2, **search})
    store.write_survey()
    store.write_effects(obstacle)
    store.write_scores()
    return store


def _alone_or_not(path: Choices, place: int) -> float:
    """Mean logarithms of errors: .004 of the weights alone, .009 of the policy."""
    return math.log(0.004 if path == (-1, -1, -1) else 0.009)


def test_a_lagrangian_allocation_rolls_out_its_own_path_and_the_weights_alone(tmp_path: Path) -> None:
    store = _lagrangian(tmp_path)
    executor = TableExecutor(_separable, _alone_or_not, [2])
    _run(store, executor)
    assert sorted(executor.asked) == ["rollout/-1.-1.-1/0", "rollout/0.0.0/0"], "two trajectories, and no trellis"
    expected = all_stages()["search"].expected
    assert expected(store.context) == len(list(store.manifest("search").units())) == 3
    space, rows = Trellis(store.context), _rows(store)
    assert space.costs is not None
    value = store.manifest("search").read("front").value
    assert value["weights_error"] == pytest.approx(0.004) and value["rollout_error"] == pytest.approx(0.009)
    assert value["front"] == len(rows) and value["predicted_error"] == rows[0]["predicted_error"]
    assert [row["rollout_error"] for row in rows] == [pytest.approx(0.009)] + [None] * (len(rows) - 1)
    for row in rows:
        added = space.costs.predicted([(3, 4, 5, 6, 8).index(b) for b in row["bits"]])
        assert row["predicted_error"] == pytest.approx(0.004 + added), "measured of the weights, plus the activations"
    assert len({tuple(row["bits"]) for row in rows}) == len(rows), "no policy twice"
    budgets = {tuple(row["bits"]) for row in space.all_budgets()}
    assert {tuple(row["bits"]) for row in rows} == budgets, "that of the budget of 4.5 is the path's own"
    assert value["policy"] == [[*rows[0]["bits"][2 * t : 2 * t + 2], 16] for t in range(3)]


def test_the_weights_alone_are_no_policy_of_the_front_however_near_they_come(tmp_path: Path) -> None:
    store = _lagrangian(tmp_path)
    _run(store, TableExecutor(_separable, lambda path, place: -9.0 if path == (-1, -1, -1) else -3.0, [2]))
    assert all(max(row["bits"]) <= 8 for row in _rows(store))
    assert max(b for row in policy_of(store.context).bits for b in row[:2]) <= 8


def test_without_end_to_end_effects_nothing_is_predicted(tmp_path: Path) -> None:
    store = _lagrangian(tmp_path, obstacle="RuntimeError: numpy")
    _run(store, TableExecutor(_separable, _alone_or_not, [2]))
    value = store.manifest("search").read("front").value
    assert value["predicted_error"] is None and value["weights_error"] == pytest.approx(0.004)
    assert {row["predicted_error"] for row in _rows(store)} == {None}


def test_a_lagrangian_search_is_another_than_before_it_rolled_out_the_weights(tmp_path: Path) -> None:
    found = all_stages()["search"].reads(_lagrangian(tmp_path).context.settings, "model")
    assert isinstance(found, dict) and found["weights_alone"] is True
