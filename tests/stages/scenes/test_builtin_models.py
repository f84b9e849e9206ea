"""The models that ship: small, loaded by plain `from_pretrained`, and drawing what they are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from adatsq_pipe.stages.scenes.builtin_models import builtin_models
from adatsq_pipe.stages.scenes.world import captions, detector, metrics, prompts, scorer

FLOORS = {
    "scenes/dit-xl": 0.9,
    "scenes/flux-dev": 0.6,
    "scenes/flux-schnell": 0.55,
    "scenes/wan": 0.8,
    "scenes/z-image": 0.7,
}
"""Least share of held-out prompts drawn right, somewhat below what each model has."""


def _pipeline(folder: Path) -> tuple[Any, dict[str, Any]]:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe, json.loads((folder / "sampling.json").read_text())


def test_every_model_has_a_floor() -> None:
    assert set(FLOORS) == set(builtin_models())


@pytest.mark.parametrize("name", FLOORS)
def test_it_is_small_and_draws_what_it_is_told(name: str) -> None:
    folder = builtin_models()[name]
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 8 * 2**20
    pipe, said = _pipeline(folder)
    asked = prompts.draw_prompts(24, world=said["world"], split="held_out", seed=0)
    given: Any = {"prompt": list(asked)}
    if said["world"] == "classes":
        given = {"class_labels": [int(prompt) for prompt in asked]}
    call = said["call"] | {"num_inference_steps": min(20, said["call"]["num_inference_steps"])}
    drawn = pipe(**given, **call, generator=torch.Generator().manual_seed(0), output_type="np")[0]
    told = scorer.verdicts([prompts.parse_prompt(prompt, said["world"]) for prompt in asked], np.asarray(drawn))
    rows = [{"task": t, "entry": i, "right": right} for i, each in enumerate(told) for t, right in each.items()]
    score = metrics.task_means(rows, "right")
    assert score["total"]["mean"] >= FLOORS[name], score


def test_flux_dev_puts_things_where_they_belong() -> None:
    folder = builtin_models()["scenes/flux-dev"]
    pipe, said = _pipeline(folder)
    assert isinstance(pipe, FluxPipeline)
    call = said["call"] | {"num_inference_steps": 20}
    for caption in ("a red circle left of a blue square", "a green triangle above a white cross"):
        seeds = [torch.Generator().manual_seed(i) for i in range(12)]
        pictures = pipe([caption] * 12, **call, generator=seeds, output_type="np").images
        right = [scorer.is_correct(captions.parse(caption), found) for found in detector.detect(pictures)]
        assert sum(right) >= 9, f"{sum(right)} of 12 pictures show {caption!r}"
