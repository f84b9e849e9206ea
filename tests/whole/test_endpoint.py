"""The default method whole: end-to-end effects, weight bits by layer, the kept front; the same bytes after kills."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from adatsq_pipe.pipeline.estimate.estimate import estimate
from adatsq_pipe.pipeline.estimate.outlook import outlook_of
from adatsq_pipe.pipeline.request import load_config
from adatsq_pipe.stages.base.survey import Survey
from adatsq_pipe.storage import arrays
from adatsq_pipe.storage.rundir import RunDir
from tests.whole import harness

pytestmark = pytest.mark.run


@pytest.fixture(scope="module")
def endpoint(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to, in one process."""
    folder = tmp_path_factory.mktemp("endpoint") / "run"
    done = harness.run(*harness.tiny(folder, tiny_flux, method="endpoint"))
    assert done.returncode == 0, done.stderr
    return folder


def _unit(run: Path, stage: str, unit: str) -> object:
    (marker,) = run.glob(f"{stage}/*/markers/{unit}.json")
    return json.loads(marker.read_text())["value"]


def test_bits_keep_both_budgets_and_the_front_holds_every_tenth_of_a_bit(endpoint: Path) -> None:
    (front,) = endpoint.glob("search/*/units/front/front.parquet")
    rows = pyarrow.parquet.read_table(front).to_pylist()
    assert len(rows) >= 20 and min(row["mean_bits"] for row in rows) == 3.0
    chosen = json.loads((endpoint / "report" / "summary.json").read_text())["bits"]
    assert chosen["activations_mean"] <= 4.0 + 1e-9
    bits = _unit(endpoint, "solve", "bits")
    specs = {
        path.stem: json.loads(path.read_text())["value"]["spec"]
        for path in endpoint.glob("solve/*/markers/layer/*.json")
    }
    assert isinstance(bits, dict) and bits and all(specs[name]["weight_bits"] == b for name, b in bits.items())
    (survey,) = endpoint.glob("capture/*/markers/survey.json")
    sizes = {row["name"]: row["in"] * row["out"] for row in json.loads(survey.read_text())["value"]["layers"]}
    spent = sum(b * sizes[name] for name, b in bits.items()) / sum(sizes[name] for name in bits)
    assert spent <= 4.0 + 1e-9 and len(set(bits.values())) > 1


def test_effects_are_stored_by_caption_step_layer_and_width(endpoint: Path) -> None:
    assert _unit(endpoint, "fisher", "differentiable") == {"obstacle": ""}
    (folder,) = endpoint.glob("fisher/*/units/sweep/000-000")
    activations, weights = arrays.read(folder, "activations"), arrays.read(folder, "weights")
    assert activations.ndim == 4 and activations.shape[:3] == weights.shape and activations.shape[3] == 6
    sizes = np.abs(activations).mean((0, 1, 2))
    assert (np.diff(sizes) < 0).all(), "each further bit lessens the mean effect"


def test_two_ray_workers_and_kills_leave_the_same_bytes(
    endpoint: Path, tiny_flux: Path, tmp_path: Path, started: list[harness.Started]
) -> None:
    run = tmp_path / "run"
    arguments = harness.tiny(run, tiny_flux, "--set", "cluster.workers=2", executor="ray", method="endpoint")
    for stage, units in (("fisher", 1), ("solve", 2)):
        started.append(harness.Started(*arguments))
        harness.wait_for(lambda: harness.count(run, stage) >= units, started[-1])  # noqa: B023
        os.kill(started[-1].pid, signal.SIGKILL)
        started[-1].wait()
    started.append(harness.Started(*arguments))
    done = started[-1].wait()
    assert done.returncode == 0, done.stderr
    harness.same(run, endpoint)


def test_a_plan_from_the_configs_foretold_the_run(endpoint: Path) -> None:
    config = load_config(RunDir.open(str(endpoint)), None, None, None, ())
    outlook, found = outlook_of(config), estimate(config)
    wanted = Survey.from_plain(_unit(endpoint, "capture", "survey"))  # type: ignore[arg-type]
    assert outlook.survey.layers == wanted.layers and outlook.survey.parameters == wanted.parameters
    assert outlook.survey.step_of_call == wanted.step_of_call
    for stage in found.stages:
        (folder,) = (
            path for path in (endpoint / stage.stage).iterdir() if (path / "markers" / "complete.json").exists()
        )
        markers = [path for path in (folder / "markers").rglob("*.json") if path.stem != "complete"]
        assert stage.units == len(markers), stage.stage
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert abs(stage.disk - size) < 0.2 * size + 20_000, stage.stage
    model = sum(path.stat().st_size for path in (endpoint / "model").resolve().rglob("*") if path.is_file())
    assert abs(found.folder - model) < 0.2 * model
