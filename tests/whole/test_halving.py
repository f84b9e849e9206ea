"""Whole tiny runs where batches do not fit into memory: they go through in halves, and say so."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.whole import harness

pytestmark = pytest.mark.run


def _run(fit: int, run: Path, model: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return harness.run(*harness.tiny(run, model, *more), start=("tests.whole.scarce", str(fit)))


def test_batches_are_halved_and_the_report_says_so(undisturbed: Path, tiny_flux: Path, tmp_path: Path) -> None:
    done = _run(1, tmp_path / "run", tiny_flux)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "report" / "summary.json").read_text())
    units = summary["facts"]["micro_batch"]
    assert units == {"capture": {"2 -> 1": 4}, "fisher": {"2 -> 1": 2}, "search": {"2 -> 1": 4}}
    whole = json.loads((undisturbed / "report" / "summary.json").read_text())
    assert whole["facts"]["micro_batch"] == {}
    here, there = (s["quality"]["psnr"]["mean"] for s in (summary, whole))
    assert abs(here - there) < 3, "as good as whole batches, up to which rows were sampled"
    for name in ("trajectory/000", "activations/001-000"):
        marker = json.loads(next((tmp_path / "run").glob(f"capture/*/markers/{name}.json")).read_text())
        assert marker["micro_batch"] == {"from": 2, "to": 1}
    assert not list((tmp_path / "run").glob("*/*/failures/**/*.json"))


def test_a_single_sample_that_does_not_fit_is_an_error(tiny_flux: Path, tmp_path: Path) -> None:
    done = _run(0, tmp_path / "run", tiny_flux)
    assert done.returncode == 1
    last = harness.last_line(done.stderr)
    assert "unit 'rehearsal/data' does not fit with one sample at a time (CUDA out of memory. Tr" in last, done.stderr
    assert "cluster.gpus_per_worker" in last and "compute.dtype=bfloat16" in last
