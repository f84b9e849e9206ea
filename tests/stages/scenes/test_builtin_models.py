"""The models that ship: small, loaded by plain `from_pretrained`, and drawing what is requested."""

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
    "scenes/dit-xl": (24, 12, 0.9),
    "scenes/flux-dev": (24, 12, 0.6),
    "scenes/flux-schnell": (24, 4, 0.55),
    "scenes/wan": (8, 8, 0.8),
    "scenes/z-image": (24, 10, 0.7),
}
"""Held-out prompts, steps, and the least share drawn correctly, somewhat below what each model reaches."""


def _pipeline(folder: Path) -> tuple[Any, dict[str, Any]]:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe, json.loads((folder / "sampling.json").read_text())


def test_every_model_has_a_floor() -> None:
    assert set(FLOORS) == set(builtin_models())


@pytest.mark.run
@pytest.mark.parametrize("name", FLOORS)
def test_a_model_is_small_and_draws_what_is_requested(name: str) -> None:
    count, steps, floor = FLOORS[name]
    folder = builtin_models()[name]
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 8 * 2**20
    pipe, sampling = _pipeline(folder)
    world = sampling["world"]
    asked = prompts.draw_prompts(count, world=world, split="held_out", seed=0)
    inputs: Any = {"prompt": list(asked)}
    if world == "classes":
        inputs = {"class_labels": [int(prompt) for prompt in asked]}
    call = sampling["call"] | {"num_inference_steps": steps}
    images = pipe(**inputs, **call, generator=torch.Generator().manual_seed(0), output_type="np")[0]
    verdicts = scorer.verdicts([prompts.parse_prompt(prompt, world) for prompt in asked], np.asarray(images))
    rows = [{"task": t, "entry": i, "right": right} for i, each in enumerate(verdicts) for t, right in each.items()]
    score = metrics.task_means(rows, "right")
    assert score["total"]["mean"] >= floor, score


@pytest.mark.run
def test_flux_dev_puts_things_where_they_belong() -> None:
    pipe, sampling = _pipeline(builtin_models()["scenes/flux-dev"])
    assert isinstance(pipe, FluxPipeline)
    call = sampling["call"] | {"num_inference_steps": 20}
    for caption in ("a red circle left of a blue square", "a green triangle above a white cross"):
        seeds = [torch.Generator().manual_seed(i) for i in range(12)]
        pictures = pipe([caption] * 12, **call, generator=seeds, output_type="np").images
        right = [scorer.is_correct(captions.parse(caption), objects) for objects in detector.detect(pictures)]
        assert sum(right) >= 9, f"{sum(right)} of 12 pictures show {caption!r}"
