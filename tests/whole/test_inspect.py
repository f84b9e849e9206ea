"""`inspect` on the command line; it and `run` refuse the same pipelines in the same words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench import zoo
from tests.whole import harness

pytestmark = pytest.mark.run


def test_a_pipeline_as_json_and_as_text(tiny_flux: Path) -> None:
    done = harness.run("inspect", str(tiny_flux), "--json", "--set", "recipe.conditioning_group=0")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["denoisers"]
    assert (found["pipeline"], found["condition"], found["kind"]) == (
        "FluxPipeline",
        "prompt",
        "FluxTransformer2DModel",
    )
    assert found["loop"]["steps"] == 4 and found["timestep"] == ["timestep", 3]
    assert found["bytes"]["weights"] == 4 * found["parameters"]
    assert found["bytes"]["quantized"]["3"] < found["bytes"]["quantized"]["4"]
    shown = harness.run("inspect", str(tiny_flux)).stdout
    assert "transformer_blocks.*.attn.to_q" in shown and "left as it is" in shown and "fed the same tensor" in shown


def test_a_config_alone(tiny_flux: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_flux / "transformer" / "config.json", tmp_path)
    for given in (tmp_path, tmp_path / "config.json"):
        done = harness.run("inspect", str(given))
        assert done.returncode == 0, done.stderr
        assert "need a pipeline folder with weights" in done.stdout


def test_captions_for_a_pipeline_of_classes(family: Callable[[str], Path], tmp_path: Path) -> None:
    done = harness.run(*harness.tiny(tmp_path / "run", family("dit")))
    assert done.returncode == 2, done.stderr
    assert "takes class labels, and 'a red circle' is none" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    assert harness.run("inspect", str(family("dit"))).returncode == 0


@pytest.mark.parametrize("kind", ["unet", "cache", "image"])
def test_what_cannot_be_taken_is_refused_by_both(kind: str, tiny_flux: Path, tmp_path: Path) -> None:
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_flux, model)
    index = json.loads((model / "model_index.json").read_text())
    if kind == "unet":
        index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    else:
        index["_class_name"] = {"cache": "Flux2KleinKVPipeline", "image": "CogVideoXImageToVideoPipeline"}[kind]
    (model / "model_index.json").write_text(json.dumps(index))
    inspected = harness.run("inspect", str(model))
    asked = harness.run("run", "--run-dir", str(run), "--model", str(model))
    assert inspected.returncode == asked.returncode == 2, (inspected.stderr, asked.stderr)
    assert harness.last_line(inspected.stderr) == harness.last_line(asked.stderr)
    assert "Traceback" not in asked.stderr and len(asked.stderr.strip().splitlines()) == 1
    assert not run.exists()


def test_a_run_tells_what_it_leaves_alone(tmp_path: Path) -> None:
    """Sana's blocks hold convolutions: one line when the capture has seen them, all of it in the report."""
    zoo.build("sana", tmp_path / "model")
    run = tmp_path / "run"
    sets = [word for each in zoo.SMALL for word in ("--set", each)]
    done = harness.run("run", "--run-dir", str(run), "--model", str(tmp_path / "model"), "--executor", "inline", *sets)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("left as they are in the blocks")]
    assert "Conv2d (transformer_blocks.*.ff.conv_" in line and "% of the parameters" in line
    left = json.loads((run / "report" / "summary.json").read_text())["facts"]["left_alone"]
    told = json.loads(harness.run("inspect", str(tmp_path / "model"), "--no-call", "--json").stdout)
    (inspected,) = told["denoisers"]
    assert [{k: v for k, v in row.items() if k != "part"} for row in left] == inspected["left"]
    assert any(row["why"] == "a convolution, not nn.Linear" for row in left)
