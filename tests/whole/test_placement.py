"""A tiny run whose workers share a (fake) GPU as measured: one to itself first, two once the survey is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.whole import harness

pytestmark = [pytest.mark.run, pytest.mark.extended]


def test_workers_share_a_gpu_once_it_is_known_what_they_take(tiny_flux: Path, tmp_path: Path) -> None:
    sets = ("cluster.gpus=1", "cluster.gpus_per_worker=auto", "cluster.gpu_memory=1.5")
    chosen = [part for setting in sets for part in ("--set", setting)]
    done = harness.run(
        *harness.tiny(tmp_path / "run", tiny_flux, *chosen, "--stages", "capture..fisher", executor="ray")
    )
    assert done.returncode == 0, done.stderr
    assert "capture: 1 to a GPU (nothing is measured yet)" in done.stderr
    assert "fisher: 2 to a GPU (estimated from the survey)" in done.stderr
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["placement"]["workers_per_gpu"]) for entry in logged] == [
        ("capture", 1),
        ("fisher", 2),
    ]
