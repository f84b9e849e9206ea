"""A run at one moment, from run directories written by hand: who is at it, rates, disk, errors, the best policy."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.pipeline import plan as planning
from adatsq_pipe.pipeline.progress import Progress, exit_code, other_bytes, progress
from adatsq_pipe.pipeline.recorded import recorded_plan
from adatsq_pipe.storage.heartbeat import Beat
from tests.pipeline.test_plan import NAMES, NEEDS, Made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def seen(made: Made) -> Progress:
    steps, context = planning.plan(made.config(), made.run)
    return progress(made.run, steps, context)


def of(now: Progress, stage: str) -> Any:
    return next(found for found in now.stages if found.name == stage)


def hold(made: Made, *, age: float = 0.0, since: float = 0.0) -> None:
    """As if a process of another machine held the run."""
    beat = Beat(host="node1", pid=7, space="", since=since, beat=time.time() - age)
    (made.run.path / ".holder.json").write_text(beat.text())


def work(made: Made, pid: int, stage: str, unit: str, *, age: float = 0.0, **changes: Any) -> None:
    """As if a worker of another machine was at the unit."""
    fingerprint = made.steps()[stage].fingerprint[:16]
    beat = Beat(host="node2", pid=pid, space="", stage=stage, fingerprint=fingerprint, unit=unit)
    folder = made.run.path / "workers"
    folder.mkdir(exist_ok=True)
    (folder / f"node2-{pid}.json").write_text(replace(beat, beat=time.time() - age, **changes).text())


def test_nothing_done_and_nobody_there_is_stopped_and_says_what_is_missing(made: Made) -> None:
    now = seen(made)
    assert now.state == "stopped" and exit_code(now.state) == 75
    assert now.why.startswith("no process holds it; not done: capture, fisher, hessian, solve, search, assemble")
    assert now.why.endswith(f"go on with: adatsq-pipe run --run-dir {made.run.display()}")
    assert (now.workers, now.best, now.errors) == ((), None, ())


def test_a_run_with_a_live_holder_runs_and_shows_who_is_at_what(made: Made) -> None:
    made.commit("capture", "a", "b")
    hold(made)
    work(made, 1, "capture", "c")
    work(made, 2, "capture", "d", age=30)
    work(made, 3, "capture", "e", age=90)
    work(made, 4, "capture", "", opening=True)
    work(made, 5, "capture", "other", fingerprint="0" * 16)
    work(made, 6, "capture", "", age=90)
    now = seen(made)
    assert now.state == "running" and exit_code(now.state) is None and now.why == "process 7 on node1 holds it"
    assert of(now, "capture").running == 2 and of(now, "capture").state == "running"
    assert [beat.pid for beat in now.workers] == [1, 2, 4, 5] and [beat.pid for beat in now.lost] == [3]
    assert of(now, "fisher").running == 0 and of(now, "fisher").state == "missing"


def test_a_holder_without_a_sign_for_a_minute_is_gone(made: Made) -> None:
    made.commit("capture", "a")
    hold(made, age=61)
    now = seen(made)
    assert now.state == "stopped" and "process 7 on node1 is gone" in now.why and of(now, "capture").state == "partial"


def test_failed_and_damaged_units_make_a_run_that_has_ended_failed(made: Made) -> None:
    manifest = made.commit("capture", "a", "b")
    assert seen(made).state == "stopped"
    (manifest.unit_folder("b") / "bytes").write_text("longer than it was")
    damaged = seen(made)
    assert damaged.state == "failed" and "1 unit is damaged" in damaged.why and exit_code("failed") == 1
    manifest.fail("c", "Traceback\nValueError: no")
    failed = seen(made)
    assert "1 unit failed; 1 unit is damaged" in failed.why
    (error,) = failed.errors
    assert (error.stage, error.unit, error.error) == ("capture", "c", "ValueError: no")
    assert abs(error.when - time.time()) < 60
    hold(made)
    assert seen(made).state == "running", "the run that goes on tries them again"


def test_the_last_five_errors_are_shown_oldest_first(made: Made) -> None:
    manifest = made.manifest("capture")
    for age in range(7):
        manifest.fail(f"u{age}", f"ValueError: {age}")
        os.utime(manifest.folder / "failures" / f"u{age}.json", (1000 - age, 1000 - age))
    assert [error.unit for error in seen(made).errors] == ["u4", "u3", "u2", "u1", "u0"]


def test_all_stages_done_is_done(made: Made) -> None:
    for stage in NAMES:
        made.commit(stage, "u", complete=True)
    now = seen(made)
    assert (now.state, exit_code(now.state)) == ("done", 0)
    hold(made)
    assert seen(made).state == "running", "the report is still written"


def test_the_rate_is_that_of_the_run_that_is_there_and_the_rest_follows_from_it(made: Made) -> None:
    names = [f"u{i}" for i in range(6)]
    manifest, now = made.commit("reference", *names), time.time()
    for name, age in zip(names, (5000, 4000, 40, 30, 20, 10), strict=True):
        os.utime(manifest.folder / "markers" / f"{name}.json", (now - age, now - age))
    hold(made, since=now - 60)
    work(made, 1, "reference", "u6")
    stage = of(seen(made), "reference")
    assert stage.rate == pytest.approx(3 / 40, rel=0.1), "of the four since the run began, three in 40 s"
    assert stage.step.expected is not None
    assert stage.left == pytest.approx((stage.step.expected - 6) / (3 / 40), rel=0.1)


def test_no_rate_of_one_unit_nor_of_a_stage_that_nobody_is_at(made: Made) -> None:
    made.commit("reference", "a")
    hold(made)
    work(made, 1, "reference", "b")
    assert of(seen(made), "reference").rate is None
    made.commit("reference", "c")
    assert of(seen(made), "reference").rate is not None
    (made.run.path / "workers" / "node2-1.json").unlink()
    assert of(seen(made), "reference").rate is None


def test_disk_is_the_sum_of_the_files(made: Made) -> None:
    made.commit("capture", "a", "bcd")
    made.commit("capture", "other", sets=("data.seed=5",))
    old = made.manifest("capture", ("data.seed=5",)).folder
    (made.run.path / "report").mkdir()
    (made.run.path / "report" / "page").write_bytes(b"x" * 1000)
    kept = sum(path.stat().st_size for path in old.rglob("*") if path.is_file())
    now = seen(made)
    assert now.disk == len("a") + len("bcd") + kept + 1000 + sum(
        path.stat().st_size for path in made.run.path.iterdir() if path.is_file()
    )
    steps, _ = planning.plan(made.config(), made.run)
    assert other_bytes(made.run, steps) == now.disk - 4


def test_the_best_so_far_is_the_nearest_that_was_rolled_out_over_its_captions(made: Made) -> None:
    manifest = made.manifest("search")
    for name, choices, error, samples in (
        ("rollout/a-000", [0, 0], math.log(0.01), 1),
        ("rollout/a-001", [0, 0], math.log(0.08), 2),
        ("rollout/b-000", [1, 0], math.log(0.05), 3),
        ("rollout/w-000", [-1, -1], math.log(0.0001), 3),
    ):
        manifest.open_unit(name)
        manifest.commit(name, value={"choices": choices, "error": error, "samples": samples, "calls": 1})
    best = seen(made).best
    assert best is not None and best.error == pytest.approx((0.01 * 0.08**2) ** (1 / 3))
    assert (best.tried, best.final, best.measured, best.mean_bits) == (2, False, True, None), "no survey: no bits"
    assert best.text() == "? mean activation bits, error 0.04 (14.0 dB), measured; so far, of 2 tried"


def test_what_the_search_chose_is_the_best(made: Made) -> None:
    manifest = made.manifest("search")
    manifest.open_unit("front")
    value = {"mean_bits": 3.5, "mac_weighted_bits": 3.6, "rollout_error": None, "predicted_error": 0.001, "policy": []}
    manifest.commit("front", value=value)
    best = seen(made).best
    assert best is not None and (best.mean_bits, best.error, best.measured) == (3.5, 0.001, False)
    assert best.text().startswith("3.50 mean activation bits, error 0.001 (30.0 dB), predicted")


def test_a_recorded_plan_needs_neither_settings_nor_model(made: Made) -> None:
    for sets in ((), ("data.seed=5",)):
        for stage in ("capture", "fisher"):
            step = made.steps(*sets)[stage]
            made.run.record_identity(stage, step.fingerprint, dict(step.identity))
            path = made.run.path / stage / step.fingerprint[:16] / "identity.json"
            os.utime(path, (1000 + len(sets), 1000 + len(sets)))
        made.commit("capture", "a", complete=True, sets=sets)
    made.commit("fisher", "x", sets=("data.seed=5",))
    steps, context = recorded_plan(made.config(), made.run, settings_known=False)
    found = {step.stage.name: step for step in steps}
    for stage in ("capture", "fisher"):
        assert found[stage].fingerprint == made.steps("data.seed=5")[stage].fingerprint
    assert [found[name].state for name in ("capture", "fisher", "hessian")] == ["done", "partial", "missing"]
    assert {step.expected for step in steps} == {None} and set(context.fingerprints) == set(NEEDS)
    assert progress(made.run, steps, context).state == "stopped"


def test_a_progress_as_json_has_numbers_for_what_is_shown(made: Made) -> None:
    made.commit("capture", "a")
    hold(made)
    work(made, 1, "capture", "b", since=5.0)
    plain: Any = seen(made).plain()
    first = plain["stages"][0]
    assert (first["stage"], first["done"], first["running"], first["failed"]) == ("capture", 1, 1, 0)
    (worker,) = plain["workers"]
    assert (worker["host"], worker["pid"], worker["unit"], worker["since"], worker["alive"]) == (
        "node2",
        1,
        "b",
        5.0,
        True,
    )
    assert plain["state"] == "running" and plain["best"] is None and plain["errors"] == []


def test_a_look_at_a_run_asks_for_each_file_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ten thousand units take a second and not a minute: what is counted does not depend on the machine."""
    made.commit("capture", *(f"a/{i:03d}" for i in range(200)))
    asked, stat = list[str](), os.stat

    def counted(path: Any, *rest: Any, **options: Any) -> os.stat_result:
        asked.append(str(path))
        return stat(path, *rest, **options)

    monkeypatch.setattr(os, "stat", counted)
    seen(made)
    units = [path for path in asked if "/capture/" in path and "/a/" in path]
    assert len(units) == len(set(units)) == 2 * 200, "a marker and a file of each unit, and no folder"
