"""How large a call is follows from the pipeline's own defaults, the arguments of its call, and the configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.estimate.geometry import Geometry, geometry_of
from adatsq_pipe.pipeline.estimate.subject import Subject, read_subject
from adatsq_pipe.stages.scenes.builtin_models import builtin_models

CONFIGS = Path(__file__).parents[2] / "zoo" / "configs"


def _of(name: str, **call: Any) -> Geometry:
    return geometry_of(read_subject(CONFIGS / f"{name}.json", dtype_size=2), call)


def test_flux_draws_1024_pixels_as_4096_tokens() -> None:
    at = _of("flux1-dev")
    assert (at.height, at.width, at.latents, at.text, at.steps) == (1024, 1024, (16, 128, 128), 512, 28)
    assert (at.area // 4, at.halves, at.calls_per_step, at.calls) == (4096, 1, 1, 28)


def test_the_call_changes_it() -> None:
    at = _of("flux1-dev", height=512, width=768, num_inference_steps=4, max_sequence_length=256)
    assert (at.latents, at.text, at.calls, at.pixels) == ((16, 64, 96), 256, 4, 3 * 512 * 768)


def test_wan_draws_81_frames_in_21_and_calls_twice_a_step() -> None:
    at = _of("wan2.1-t2v-14b")
    assert (at.height, at.width, at.frames, at.latents) == (480, 832, 81, (16, 21, 60, 104))
    assert (at.calls_per_step, at.calls) == (2, 100)
    assert _of("wan2.1-t2v-14b", guidance_scale=1.0).calls == 50


def test_halves_of_guidance_share_a_call_of_dit_and_z_image() -> None:
    at = _of("dit-xl-2")
    assert (at.height, at.latents, at.text, at.halves) == (256, (4, 32, 32), 0, 2)
    assert _of("dit-xl-2", guidance_scale=1.0).halves == 1
    assert _of("z-image").halves == 2 and _of("z-image", guidance_scale=0.0).halves == 1


def test_qwen_image_is_guided_beside_a_negative_prompt_alone() -> None:
    assert _of("qwen-image").calls_per_step == 1 and _of("qwen-image", negative_prompt=" ").calls_per_step == 2


def test_a_built_in_model_says_all_of_it() -> None:
    folder = builtin_models()["scenes/wan"]
    call = json.loads((folder / "sampling.json").read_text())["call"]
    at = geometry_of(read_subject(folder, dtype_size=4), call)
    assert (at.latents, at.frames, at.text, at.calls, at.assumed) == ((8, 3, 16, 16), 5, 12, 50, ())


def test_two_denoisers_share_the_steps_at_the_models_boundary() -> None:
    one = read_subject(CONFIGS / "wan2.2-t2v-a14b.json", dtype_size=2)
    config, scheduler = one.denoisers["transformer"], {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
    two = {"transformer": config, "transformer_2": config}

    def divided(**changes: Any) -> Geometry:
        return geometry_of(Subject(**{**one.__dict__, "denoisers": two, **changes}), {"num_inference_steps": 10})

    known = divided(index={"boundary_ratio": 0.75}, scheduler=scheduler)
    assert known.steps_of == {"transformer": 3, "transformer_2": 7}, "timesteps 1000, 889, 778; then 667 and less"
    unknown = divided()
    assert unknown.steps_of == {"transformer": 5, "transformer_2": 5}
    assert "share them evenly" in unknown.assumed[-1]


def test_a_picture_without_a_latent_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"4 x 4 pixels has no latents; raise model\.call\.height"):
        _of("flux1-dev", height=4, width=4)
