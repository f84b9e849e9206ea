"""A pipeline whose loop no gradient passes: the whole run goes by per-step scores, and says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

import adatsq_pipe.stages.runtime  # noqa: F401  (registers the quantizer)
from adatsq_pipe.pipeline import config, plan
from adatsq_pipe.pipeline.request import read_request
from adatsq_pipe.stages.calibration.effects import is_end_to_end, obstacle_of
from adatsq_pipe.stages.calibration.scores import fisher_scores
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.runtime.model import quantized_layers
from adatsq_pipe.storage.rundir import RunDir
from tests.bench import zoo
from tests.whole import harness

pytestmark = pytest.mark.run


def test_a_loop_without_a_gradient_runs_by_scores_of_single_steps(tmp_path: Path) -> None:
    """Kandinsky's loop writes into the latents whose deviation it has taken."""
    _, prompts = zoo.build("kandinsky5-image", tmp_path / "model")
    sets = [word for each in (*zoo.SMALL, *prompts, "recipe.method=endpoint") for word in ("--set", each)]
    run = tmp_path / "run"
    where = ["--run-dir", str(run), "--model", str(tmp_path / "model"), "--executor", "inline"]
    done = harness.run("run", *where, *sets)
    assert done.returncode == 0, done.stderr
    request = config.load(preset=None, file=None, sets=(), model=None, previous=read_request(run))
    context = plan.plan(request, RunDir(run.resolve()))[1]
    assert "inplace operation" in obstacle_of(context) and not is_end_to_end(context)
    survey = survey_of(context)
    scores = fisher_scores(context)
    assert scores.shape == (survey.steps, len(survey.layers)) and (scores[-1] > 0).any()
    assert not list(run.glob("fisher/*/markers/sweep*")), "no sweep is run"
    saved = json.loads((run / "report" / "summary.json").read_text())
    assert saved["bits"]["activations_mean"] == pytest.approx(4.0, abs=0.1)
    pipe = DiffusionPipeline.from_pretrained(run / "model")
    layers = quantized_layers(pipe.transformer)
    bits = {row.name: layers[row.name].spec.weight_bits for row in survey.layers if row.rounded}
    assert set(bits.values()) == {context.settings[Recipe].weight_bits}
