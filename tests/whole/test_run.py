"""Whole tiny runs through the command line: the same bytes whatever is killed, wherever it runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pyarrow.parquet
import pytest

from adatsq_pipe.storage import tables
from tests.conftest import PATIENCE
from tests.support.drawn import coloured
from tests.whole import harness

pytestmark = pytest.mark.run
STAGES = ("capture", "fisher", "hessian", "solve", "search", "assemble", "reference", "evaluate")


def test_outputs(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "report" / "summary.json").read_text())
    assert set(summary["seconds"]) == {*STAGES}
    assert 3 <= summary["bits"]["activations_mean"] <= summary["bits"]["budget"]
    assert summary["bits"]["activations_run"] == pytest.approx(summary["bits"]["activations_mean"])
    assert summary["size"]["layer_ratio"] > 2
    config = json.loads((undisturbed / "model" / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "adatsq"
    said = json.loads((undisturbed / "model" / "sampling.json").read_text())
    assert said["call"]["num_inference_steps"] == 4 and said["world"] == ""
    card = (undisturbed / "model" / "README.md").read_text()
    assert (
        card.startswith("---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n")
        and "| PSNR of pictures, dB |" in card
        and "![Sensitivity and activation bits" in card
    )
    assert coloured(undisturbed / "model" / "policy.png") > 0.2
    assert coloured(undisturbed / "model" / "sheet.png") > 0.1
    assert coloured(undisturbed / "report" / "side_by_side.png") > 0.1


def test_the_number_of_files_follows_from_units_and_not_from_tensors(undisturbed: Path) -> None:
    """Beside a marker for each unit and two files for each stage: those of units, as storage/README.md counts them."""
    (survey,) = undisturbed.glob("capture/*/markers/survey.json")
    layers = json.loads(survey.read_text())["value"]["layers"]
    inputs = {layer["source"] for layer in layers}

    def found(stage: str, pattern: str) -> int:
        return len(list(undisturbed.glob(f"{stage}/*/markers/{pattern}.json")))

    trajectories, blocks = found("capture", "trajectory/*"), found("capture", "activations/*")
    drawn = found("reference", "draw/*")
    files = {
        "capture": trajectories + 2 * blocks,
        "fisher": found("fisher", "scores/*"),
        "hessian": len(inputs),
        "solve": len(layers),
        "search": 1,
        "reference": drawn + found("reference", "truth"),
        "evaluate": 3 * drawn,
    }
    assert len(inputs) < len(layers) and trajectories and blocks and drawn
    for stage, of_units in files.items():
        paths = [path for path in undisturbed.glob(f"{stage}/*/**/*") if path.is_file()]
        units = found(stage, "**/*") - 1
        assert len(paths) == 2 + units + of_units, [str(path.relative_to(undisturbed)) for path in paths]


def test_the_front_keeps_the_budget_and_the_nearest_of_those_rolled_out_is_taken(undisturbed: Path) -> None:
    (front,) = undisturbed.glob("search/*/units/front/front.parquet")
    summary = json.loads((undisturbed / "report" / "summary.json").read_text())
    rows = pyarrow.parquet.read_table(front).to_pylist()
    assert all(row["mean_bits"] <= summary["bits"]["budget"] + 1e-9 for row in rows)
    tried = {tuple(row["choices"]): row["rollout_error"] for row in rows if row["rollout_error"] is not None}
    assert {(0,) * 4, (1,) * 4} <= set(tried), "the paths of one candidate throughout are always among them"
    assert summary["search"]["rollout_error"] == min(tried.values())


def test_killed_in_the_middle_of_every_stage(undisturbed: Path, tiny_flux: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for place, stage in enumerate(STAGES):
        unit = {"assemble": 0, "reference": 1, "evaluate": 1}.get(stage, 2)
        died = harness.run(*harness.tiny(run, tiny_flux), strike=f"{stage}:{unit}")
        assert died.returncode == -signal.SIGKILL, died.stderr
        kept = harness.count(run, stage)
        assert kept == unit, f"{stage}: {kept} markers after dying in unit {unit}"
        if place:
            assert list(run.glob(f"{STAGES[place - 1]}/*/markers/complete.json"))
    before = {p: p.stat().st_mtime_ns for p in run.glob("*/*/markers/**/*.json")}
    done = harness.run(*harness.tiny(run, tiny_flux))
    assert done.returncode == 0, done.stderr
    assert all(p.stat().st_mtime_ns == t for p, t in before.items() if p.exists() and "/path/" not in str(p))
    harness.same(run, undisturbed)


def test_sigterm_stops_between_units_and_resumes(undisturbed: Path, tiny_flux: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = harness.Started(*harness.tiny(run, tiny_flux))
    harness.wait_for(lambda: harness.count(run, "solve") >= 1, process)
    os.kill(process.pid, signal.SIGTERM)
    stopped = process.wait()
    assert stopped.returncode == 75, stopped.stderr
    assert f"Resume with: adatsq-pipe run --run-dir {run}" in stopped.stderr
    done = harness.run(*harness.tiny(run, tiny_flux))
    assert done.returncode == 0, done.stderr
    harness.same(run, undisturbed)


def test_nothing_to_do_imports_no_torch_and_starts_no_ray(undisturbed: Path, tiny_flux: Path) -> None:
    script = (
        "import sys\n"
        "from adatsq_pipe.pipeline.commands.cli import main\n"
        f"sys.argv = ['adatsq-pipe', 'run', '--run-dir', {str(undisturbed)!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = sorted({'torch', 'ray', 'diffusers', 'zarr'} & set(sys.modules))\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout


def test_another_budget_runs_search_assemble_and_evaluate_but_no_reference(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run, symlinks=True)
    before = {p: p.stat().st_mtime_ns for s in STAGES[:4] for p in run.glob(f"{s}/*/markers/**/*.json")}
    asked = ("--run-dir", str(run), "--set", "search.budget=4.5")
    why = harness.run("why", *asked).stdout.splitlines()
    assert ["would run" in line for line in why[:8]] == [False] * 4 + [True, True, False, True]
    assert why[8].split()[:2] == ["compute", "cpu"]
    assert "reads.search.budget: 4.0 -> 4.5" in why[4]
    done = harness.run("run", *asked)
    assert done.returncode == 0, done.stderr
    after = {p: p.stat().st_mtime_ns for s in STAGES[:4] for p in run.glob(f"{s}/*/markers/**/*.json")}
    assert after == before
    back = harness.run("run", "--run-dir", str(run), "--set", "search.budget=4.0")
    assert back.returncode == 0 and "started" not in back.stderr, back.stderr


@pytest.mark.parametrize("name", ["z-image", "wan", "dit"])
def test_other_families_run_through(name: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    labels = ["--set", "data.prompts=['1', '2', '3']", "--set", "evaluate.prompts=['4']"] if name == "dit" else []
    done = harness.run(*harness.tiny(run, family(name), *labels))
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "report" / "summary.json").read_text())
    rows = [row for path in run.glob("evaluate/*/units/quantized/*/samples.parquet") for row in tables.read(path)]
    assert summary["quality"]["latent_error"]["mean"] == pytest.approx(fmean(row["latent_error"] for row in rows))
    assert summary["bits"]["activations_mean"] <= 4.0 + 1e-9 and len(rows) == 2
