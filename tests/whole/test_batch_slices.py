"""A search whose evaluations are cut into slices: the same bytes for one worker, several, and after a kill."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.pipeline.config import load
from adatsq_pipe.pipeline.costs import search_cost
from adatsq_pipe.pipeline.plan import plan
from adatsq_pipe.pipeline.request import read_request
from adatsq_pipe.storage.rundir import RunDir
from tests.whole import harness

pytestmark = [pytest.mark.run, pytest.mark.extended]
CUT = ("--set", "search.samples=1", "--set", "search.batches=2", "--set", "search.rollout_prompts=3")


def _searched(run: Path, *more: str, executor: str = "inline", strike: str = "") -> tuple[int, str]:
    arguments = ("run", "--run-dir", str(run), "--stages", "search", "--executor", executor, *CUT, *more)
    done = harness.run(*arguments, strike=strike)
    return done.returncode, done.stderr


def _folder(run: Path) -> Path:
    """The search's folder with slices: there is another without, of the undisturbed run."""
    found = [path.parent for path in run.glob("search/*/identity.json") if '"samples"' in path.read_text()]
    assert len(found) == 1
    return found[0]


def _values(run: Path) -> dict[str, dict[str, Any]]:
    """What the units that stay vouch for, free of times and hosts."""
    markers = _folder(run) / "markers"
    return {
        str(path.relative_to(markers)): {key: json.loads(path.read_text())[key] for key in ("files", "value")}
        for path in markers.rglob("*.json")
    }


def _paths(run: Path) -> dict[Path, int]:
    """Markers of evaluations, with when they were written."""
    markers = run.glob("search/*/markers/path/*.json")
    return {path: path.stat().st_mtime_ns for path in markers}


def test_slices_give_the_same_bytes_for_one_worker_two_and_after_a_kill(undisturbed: Path, tmp_path: Path) -> None:
    runs = {name: tmp_path / name for name in ("inline", "ray", "killed")}
    for run in runs.values():
        shutil.copytree(undisturbed, run, symlinks=True)
    code, errors = _searched(runs["inline"])
    assert code == 0, errors
    wanted = _values(runs["inline"])
    assert sum(name.startswith("rollout/") for name in wanted) >= 3 and not any("path/" in name for name in wanted)

    asked = sum(len(marker["value"]) for name, marker in wanted.items() if name.startswith("level/"))
    survivors = sum(name.startswith("rollout/") for name in wanted) / 3
    assert _cost(runs["inline"]) == pytest.approx(asked / 4 + survivors), "captions cut into units cost no more"

    code, errors = _searched(runs["ray"], "--set", "cluster.workers=2", executor="ray")
    assert code == 0, errors
    assert _values(runs["ray"]) == wanted

    for strike, units in (("search:15", 14), ("search:4", 18)):
        before = _paths(runs["killed"])
        code, errors = _searched(runs["killed"], strike=strike)
        assert code == -signal.SIGKILL, errors
        after = _paths(runs["killed"])
        assert len(after) == units, "six units of the first level, then those of the second that were committed"
        assert before.items() <= after.items(), "a unit with a marker was done again"
    code, errors = _searched(runs["killed"])
    assert code == 0, errors
    assert _values(runs["killed"]) == wanted


def _cost(run: Path) -> float:
    config = load(preset=None, file=None, sets=(), model=None, previous=read_request(run))
    return search_cost(plan(config, RunDir.at(str(run)))[1])["fp_trajectories_by_calls"]


def test_more_batches_than_there_are_is_one_line(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    code, errors = _searched(tmp_path / "run", "--set", "search.batches=5")
    assert code == 2 and "search.batches is 5, and the 3 calibration captions make 2 of 2" in errors
