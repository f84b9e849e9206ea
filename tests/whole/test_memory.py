"""A model larger than the device: said beforehand, run block by block, and the bytes of a run that had room."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adatsq_pipe.storage.rundir import RunDir
from tests.whole import harness

pytestmark = pytest.mark.run

SMALL = ("--set", "cluster.gpu_memory=0.0002")
"""GB: less than the tiny Flux pipeline's weights."""


def _results(run: Path) -> dict[str, str]:
    """Digest of every unit of the stages that run the model."""
    return {
        f"{manifest.stage}/{unit}": marker.digest
        for manifest in RunDir(run.resolve()).manifests()
        if manifest.stage in ("capture", "fisher", "hessian", "solve", "search")
        for unit, marker in manifest.markers().items()
    }


def test_blocks_take_turns_and_nothing_else_changes(undisturbed: Path, tiny_flux: Path, tmp_path: Path) -> None:
    room, turns, again = undisturbed, tmp_path / "turns", tmp_path / "again"
    for run, more in ((turns, SMALL), (again, ("--set", "fisher.gradient_checkpointing=true"))):
        done = harness.run(*harness.tiny(run, tiny_flux, *more))
        assert done.returncode == 0, done.stderr
        said = done.stderr.splitlines()
        if run is turns:
            place = next(i for i, line in enumerate(said) if line.startswith("memory: "))
            assert place < said.index("capture: started") and "blocks take turns" in said[place]
        else:
            assert not any(line.startswith("memory: ") for line in said)
    assert len(_results(room)) > 30
    assert _results(room) == _results(turns) == _results(again)
    harness.same(turns, room)
    facts = {run: json.loads((run / "report" / "summary.json").read_text())["facts"]["memory"] for run in (room, turns)}
    assert facts[room] == {} and set(facts[turns]) == {"capture", "fisher", "search", "evaluate"}
    fisher = facts[turns]["fisher"]
    assert fisher["blockwise"] and fisher["recomputed"]
    assert fisher["largest"] + fisher["stays"] < fisher["weights"] and fisher["held"] > fisher["activations"] / 2 > 0
    told = harness.run("inspect", str(tiny_flux), *SMALL)
    assert told.returncode == 0 and "blocks take turns" in told.stdout, told.stderr
    assert "blocks take turns" not in harness.run("inspect", str(tiny_flux), "--no-call").stdout
    why = harness.run("why", "--run-dir", str(room), *SMALL)
    assert why.returncode == 0 and "would run" not in why.stdout.replace("would not run", ""), why.stdout
