"""`pick` on a finished run of a built-in model: another point of the front without another search."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.conftest import TINY
from tests.whole import harness

pytestmark = pytest.mark.run
BEFORE = ("capture", "fisher", "hessian", "solve", "search", "reference")
"""Stages that another point of the front leaves alone."""
AFTER = ("assemble", "evaluate")


def _succeeded(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = harness.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def _status(run: Path) -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in json.loads(_succeeded("status", "--run-dir", str(run), "--json").stdout)}


def _activation_bits(model: Path) -> list[int]:
    """Bits of all layers and steps whose activations are rounded, from the model's own tensors."""
    bits = list[int]()
    for path in (model / "transformer").glob("*.safetensors"):
        with safe_open(path, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                if name.endswith(".policy"):
                    bits += [b for b in stored.get_tensor(name).tolist() if b < 16]
    return bits


def test_another_point_of_the_front_assembles_and_evaluates_alone_and_zero_goes_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny = ["--executor", "inline", *TINY, "--set", "model.call.num_inference_steps=2"]
    _succeeded("run", "--run-dir", str(run), "--model", "scenes/flux-schnell", "--set", "recipe.method=endpoint", *tiny)
    before, digests = _status(run), harness.digests(run / "model")
    search = json.loads((run / "report" / "summary.json").read_text())["search"]
    assert 0 < search["fp_trajectories_by_calls"] <= 2, "its own path and the weights alone, and no trellis"
    assert sum(_activation_bits(run / "model")) / len(_activation_bits(run / "model")) > 3.6
    markers = {p: p.stat().st_mtime_ns for stage in BEFORE for p in run.glob(f"{stage}/*/markers/**/*.json")}

    picked = _succeeded("pick", str(run), "--mean-bits", "3.6")
    assert picked.stdout.startswith("picked    3.") and "predicted error" in picked.stdout
    assert [stage for stage in (*BEFORE, *AFTER) if f"{stage}: started" in picked.stderr] == list(AFTER)
    bits = _activation_bits(run / "model")
    mean = sum(bits) / len(bits)
    assert 3.4 < mean <= 3.6 + 1e-9
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert summary["bits"]["activations_mean"] == pytest.approx(mean), "mean bits said are mean bits run"
    assert f"{mean:.2f}-bit activations" in summary["title"]
    assert f"- activations: {mean:.2f} bits on average" in (run / "model" / "README.md").read_text()
    now = _status(run)
    assert {row["state"] for row in now.values()} == {"done"}
    assert [stage for stage in now if now[stage]["fingerprint"] != before[stage]["fingerprint"]] == list(AFTER)
    assert {p: p.stat().st_mtime_ns for p in markers} == markers
    assert {p for stage in BEFORE for p in run.glob(f"{stage}/*/markers/**/*.json")} == set(markers)
    again = _succeeded("run", "--run-dir", str(run))
    assert "nothing to do" in again.stdout, "the run keeps the choice"

    back = _succeeded("pick", str(run), "--mean-bits", "0")
    assert "started" not in back.stderr and "as the search chose" in back.stdout
    assert {stage: row["fingerprint"] for stage, row in _status(run).items()} == {
        stage: row["fingerprint"] for stage, row in before.items()
    }
    assert harness.digests(run / "model") == digests
