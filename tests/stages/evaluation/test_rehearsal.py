"""What a pipeline refuses is said before any unit: its own words, in one line."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adatsq_pipe.pipeline.config import load
from adatsq_pipe.pipeline.plan import plan
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import NotTaken
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.evaluation.rehearsal_worker import Rehearsal
from adatsq_pipe.storage.rundir import RunDir
from tests.zoo.given import BUILDERS


def context(model: Path, run: Path, *sets: str) -> Context:
    place = RunDir(run)
    place.create()
    own = ["data.prompts=['a red circle', 'a blue square']", "data.batch=2", "evaluate.prompts=['a white cross']"]
    if any("prompts_file" in each for each in sets):
        own = []
    config = load(preset=None, file=None, sets=(*own, *sets), model=str(model), previous=None)
    place.add_prompt_images(config.images)
    return plan(config, place)[1]


def test_a_call_that_the_pipeline_takes_passes_and_leaves_nothing(tiny_flux: Path, tmp_path: Path) -> None:
    rehearsal = Rehearsal(context(tiny_flux, tmp_path / "run", "evaluate.seeds=5"))
    rehearsal("rehearsal/data")
    rehearsal("rehearsal/evaluate")
    assert [path for path in (tmp_path / "run").rglob("*") if "units" in path.parts] == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("num_inference_steps=2.5", "FluxPipeline fails as it is called here"),
        ("height='tall'", "height='tall'"),
        ("sigmas=[]", "without one call of its denoiser"),
        ("sigmas=['a']", "sigmas=['a']"),
        ("max_sequence_length=100000", "`max_sequence_length` cannot be greater than 512"),
    ],
)
def test_a_call_that_the_pipeline_refuses_is_refused_in_one_line(
    value: str, said: str, tiny_flux: Path, tmp_path: Path
) -> None:
    made = context(tiny_flux, tmp_path / "run")
    key, _, text = value.partition("=")
    called = made.settings[ModelSettings].model_copy(update={"call": {key: tomllib.loads(f"x = {text}")["x"]}})
    with pytest.raises(NotTaken) as caught:
        Rehearsal(replace(made, settings=made.settings.replaced(called)))("rehearsal/data")
    line = str(caught.value)
    assert said in line and "\n" not in line and line.endswith("(nothing was started)"), line


def test_a_loop_without_an_end_is_refused(tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adatsq_pipe.stages.denoiser import denoiser  # the module whose bound is lowered

    monkeypatch.setattr(denoiser, "MOST_CALLS", 5)
    with pytest.raises(NotTaken, match="more than 5 times; ask for fewer steps"):
        Rehearsal(context(tiny_flux, tmp_path / "run", "model.call.num_inference_steps=6"))("rehearsal/data")


def manifest(folder: Path, *rows: dict[str, Any]) -> Path:
    """Prompts with a picture to change and what else the rows have."""
    folder.mkdir()
    Image.new("RGB", (16, 16), "red").save(folder / "0.png")
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a", "images": {"image": "0.png"}, **row}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def img2img(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("img2img")
    pipe, call = BUILDERS["changed"][0]()
    pipe.save_pretrained(folder)
    (folder / "sampling.json").write_text(json.dumps({"call": {**call, "num_inference_steps": 6}}))
    return folder


@pytest.mark.parametrize(
    ("table", "other", "said"),
    [
        ("data", {"strength": 0.4}, "strength is 0.9 there and 0.4 here"),
        ("evaluate", {"strength": 0.4}, "strength is 0.9 there and 0.4 here"),
        ("data", {"strength": 0.9, "num_inference_steps": 3}, "num_inference_steps is None there and 3 here"),
        ("data", {"strength": 0.01}, "strength"),
    ],
)
def test_prompts_whose_runs_differ_are_refused(
    table: str, other: dict[str, Any], said: str, img2img: Path, tmp_path: Path
) -> None:
    file = manifest(tmp_path / "rows", {"call": {"strength": 0.9}}, {"call": other})
    with pytest.raises(NotTaken) as caught:
        Rehearsal(context(img2img, tmp_path / "run", f"{table}.prompts_file={file}"))(f"rehearsal/{table}")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_prompts_of_one_strength_pass(img2img: Path, tmp_path: Path) -> None:
    file = manifest(tmp_path / "rows", *({"call": {"strength": 0.5}, "seed": seed} for seed in (1, 2)))
    Rehearsal(context(img2img, tmp_path / "run", f"data.prompts_file={file}"))("rehearsal/data")
