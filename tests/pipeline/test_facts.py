"""A finished run's bits, sizes, facts and costs, computed here a second time from the numbers of a made-up run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adatsq_pipe.pipeline import costs
from adatsq_pipe.pipeline.page import content
from adatsq_pipe.pipeline.summary import CAST_WEIGHTS, Facts
from adatsq_pipe.storage.rundir import RunDir
from tests.support import made_run as made
from tests.support.made_context import FIRST, MODULATION, SECOND

NO_FACTS = Facts(
    sensitivity="", layers_not_called=(), layers_called_repeatedly_and_left_alone=(), left_alone=(),
    weight_only_layers=(), memory={}, damping_raised={}, micro_batch={}, placement={}, smoothing={}, groups_fitted={},
    worst_layer_error=(0.0, ""),
)  # fmt: skip


def test_bits_sizes_and_facts_are_those_of_the_units(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    found = made.summary(store)
    assert found["title"] == "tiny-flux: 4.38-bit weights, 4.20-bit activations"
    assert found["fingerprint"] == store.context.fingerprints["evaluate"]
    assert found["model"] == "/somewhere/tiny-flux"
    assert found["bits"] == {
        "weights_with_scales": 4.375,
        "weights_mean": (3 * 24 * 16 + 6 * 8 * 16) / (24 * 16 + 8 * 16),
        "weight_layers": {"3": 1, "6": 1},
        "activations_mean": 4.2,
        "activations_mac_weighted": 4.1,
        "budget": 4.25,
        "activations_run": 4.5,
    }
    assert found["size"] == {
        "layers": 3,
        "layer_bytes_bf16": 800,
        "layer_bytes": 200,
        "transformer_bytes_bf16": 1200,
        "transformer_bytes": 500,
        "layer_ratio": 4.0,
        "transformer_ratio": 2.4,
    }
    assert (found["search"]["front"], found["search"]["rollout_error"]) == (5, 0.003)
    facts = found["facts"]
    assert facts["sensitivity"] == "step"
    assert facts["layers_not_called"] == ["blocks.0.never"]
    assert facts["layers_called_repeatedly_and_left_alone"] == ["blocks.0.often"]
    assert facts["left_alone"] == [{"pattern": "norm", "count": 3}]
    assert facts["weight_only_layers"] == [MODULATION]
    assert facts["memory"] == {"capture": "fits"}, "what was said last, and of this run"
    assert facts["placement"] == {"solve": {"workers_per_gpu": 2}}
    assert facts["micro_batch"] == {"capture": {"4 -> 1": 1, "4 -> 2": 2}}
    assert list(facts["micro_batch"]["capture"]) == ["4 -> 1", "4 -> 2"]
    assert facts["smoothing"] == {"none": 1, "scale": 2}
    assert tuple(facts["worst_layer_error"]) == (0.07, SECOND)


def test_only_damping_above_the_settings_is_a_fact(tmp_path: Path) -> None:
    store = made.store(tmp_path, solve={"damping": 0.02})
    assert made.summary(store)["facts"]["damping_raised"] == {SECOND: 0.1}


def test_fitted_groups_are_those_of_neither_of_the_recipe_s_sizes(tmp_path: Path) -> None:
    fitting = {"weight_group": 128, "conditioning_group": 64, "group_fit": True}
    assert made.summary(made.store(tmp_path / "a", recipe=fitting))["facts"]["groups_fitted"] == {FIRST: 8}
    refusing = {**fitting, "group_fit": False}
    assert made.summary(made.store(tmp_path / "b", recipe=refusing))["facts"]["groups_fitted"] == {}
    searching = {**fitting, "group_search": [32, 64]}
    assert made.summary(made.store(tmp_path / "c", recipe=searching))["facts"]["groups_fitted"] == {}


def test_the_search_s_cost_counts_every_call_once_by_its_captions(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    calls = 2.0 + 4.0 + 6 * 2 / 4 + 6 * 1 / 4
    assert costs.search_cost(store.context) == pytest.approx(
        {"fp_trajectories_by_calls": calls / 6, "fp_trajectories_by_seconds": (20 + 10 + 3 + 2) / (10 + 5)}
    )
    assert made.summary(store)["search"]["fp_trajectories_by_calls"] == pytest.approx(calls / 6)


def test_a_rollout_that_does_not_say_its_captions_had_those_of_the_settings(tmp_path: Path) -> None:
    store = made.store(tmp_path, search={"batches": 1, "rollout_prompts": 2})
    manifest = store.manifest("search")
    for unit in ("rollout/a-000", "rollout/a-001"):
        manifest.discard(unit)
    made.commit(store.context, "search", "rollout/b", (3.0, 0.0, 4.0), value={"calls": 6})
    assert costs.search_cost(store.context)["fp_trajectories_by_calls"] == pytest.approx((2 + 4 + 6 * 2 / 3) / 6)


def test_sensitivities_are_measured_on_the_first_batch(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    manifest = store.manifest("search")
    for unit in [unit for unit in manifest.units() if unit != "front"]:
        manifest.discard(unit)
    for i in (0, 1):
        made.commit(store.context, "search", f"sensitivity/{i:04d}", (8.0, 0.0, 9.0, 9.0), value={})
    assert costs.search_cost(store.context) == pytest.approx(
        {"fp_trajectories_by_calls": 18 / 6, "fp_trajectories_by_seconds": 16 / 10}
    )


def test_the_capture_s_cost_is_over_one_bare_run(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    total = 1.5 + 0.5 + 12 + 6 + 10 + 10 + 5
    assert costs.capture_cost(store.context) == pytest.approx(total / 15)
    assert made.summary(store)["capture_over_bare_forwards"] == pytest.approx(total / 15)


def test_seconds_are_walls_over_all_tries_and_the_workers_time_by_kind(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    found = made.summary(store)["seconds"]
    assert set(found) == set(store.context.fingerprints)
    assert found["capture"] == pytest.approx({"wall": 22.5, "model": 30.0, "algebra": 3.0, "overhead": 12.0})
    assert found["solve"] == pytest.approx({"wall": 4.0, "model": 3.0, "algebra": 6.0, "overhead": 3.0})
    assert found["fisher"] == {"wall": 0.0, "model": 0.0, "algebra": 0.0, "overhead": 0.0}


def test_disk_adds_up_over_all_tries_and_memory_is_that_of_the_worker_that_held_most(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    for unit, text, held in (("x/0", "four", 3_000_000_000), ("x/1", "sixsix", 2_000_000_000)):
        folder = store.manifest("hessian").open_unit(unit)
        (folder / "bytes").write_text(text)
        store.manifest("hessian").commit(unit, seconds={"resident": float(held)})
    facts = made.summary(store)["facts"]
    assert facts["disk"].keys() == store.context.fingerprints.keys()
    assert facts["disk"]["hessian"] == 4 + 6 and facts["main_memory"] == {"hessian": 3_000_000_000}
    said = replace(NO_FACTS, disk={"a": 10**9, "b": 3 * 10**9}, main_memory={"a": 7 * 10**8, "b": 6 * 10**8}).space()
    assert said == "4.00 GB on disk, 3.00 of it for b; a worker held 0.70 GB of main memory at most, in a"
    assert NO_FACTS.space() == ""


def test_the_weights_that_workers_shared_stand_in_the_disk_of_the_runs_that_had_a_copy(tmp_path: Path) -> None:
    """Stages of one run see the same copy, and evaluate one more: the most there was at once counts."""
    alone, shared = made.store(tmp_path / "alone"), made.store(tmp_path / "shared")
    own = shared.context.fingerprints
    for stage, fingerprint, size in (
        ("fisher", own["fisher"], 5_000_000),
        ("evaluate", own["evaluate"], 7_000_000),
        ("fisher", "of other settings", 9_000_000),
    ):
        RunDir.at(shared.context.run).log({"stage": stage, "fingerprint": fingerprint, "wall": 1.0, "cast": size})
    disk = made.summary(shared)["facts"]["disk"]
    assert disk[CAST_WEIGHTS] == 7_000_000
    assert made.summary(alone)["facts"]["disk"] == {s: size for s, size in disk.items() if s != CAST_WEIGHTS}
    table = content.space_table(disk, {})
    assert table.rows[-1] == ["cast weights", 7.0, None]
    assert "0.01 GB on disk, 0.01 of it for cast weights" in replace(NO_FACTS, disk=disk).space()
