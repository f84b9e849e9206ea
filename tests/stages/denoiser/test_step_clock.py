"""Steps as a denoiser can tell them apart, and the zoo's pipelines whose calls have a timestep for every token."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from PIL import Image

from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.step_clock import StepClock
from adatsq_pipe.stages.runtime.clock import nearest_step, timestep_of
from tests.bench import zoo
from tests.tiny import wan


def steps_of(*calls: tuple[int, float, float]) -> tuple[list[int], tuple[float, ...]]:
    """The steps of calls, each (steps of the scheduler before it, least timestep, largest), and their timesteps."""
    clock = StepClock()
    return [clock.call(step, (least, largest)) for step, least, largest in calls], clock.timesteps


def test_calls_between_two_steps_of_the_scheduler_are_of_one_step() -> None:
    assert steps_of((0, 9, 9), (0, 9, 9), (1, 5, 5), (1, 5, 5)) == ([0, 0, 1, 1], (9, 9, 5, 5))
    assert steps_of((0, 9, 9), (0, 8, 8), (1, 5, 5)) == ([0, 0, 1], (9, 8, 5)), "whatever their timesteps"


def test_tokens_that_stand_still_change_neither_steps_nor_timesteps() -> None:
    assert steps_of((0, 0, 9), (1, 0, 5), (2, 0, 1)) == ([0, 1, 2], (9, 5, 1))
    assert steps_of((0, 0.0, 1.0), (1, 0.4, 1.0), (2, 0.9, 1.0)) == ([0, 1, 2], (0.0, 0.4, 0.9))


def test_steps_of_one_timestep_are_one_step_for_a_denoiser_cannot_tell_them_apart() -> None:
    assert steps_of((0, 9, 9), (1, 5, 5), (2, 5, 5), (3, 1, 1)) == ([0, 1, 1, 2], (9, 5, 5, 1))
    assert steps_of((0, 9, 9), (1, 5, 9), (2, 1, 9), (3, 1, 5)) == ([0, 0, 0, 1], (9, 9, 9, 5)), "frames in turn"


def followed_steps(folder: Path, conditions: Conditions) -> tuple[list[int], list[int], list[torch.Tensor]]:
    """Of every call: its step, the step that the runtime finds for it, and its timesteps."""
    call = json.loads((folder / "sampling.json").read_text())["call"]
    denoiser = Denoiser(str(folder), dtype="float32", device="cpu", call=call)
    module = sys.modules[type(denoiser.pipe).__module__]
    module.__dict__.setdefault("ftfy", types.SimpleNamespace(fix_text=lambda text: text))  # repairs text; optional
    calls: list[Call] = denoiser.rehearse(conditions)
    times = {call.step: call.timestep for call in calls}
    calibrated = torch.tensor([times[step] for step in sorted(times)])
    values = [timestep_of(denoiser.parts[call.part].forward, call.args, call.kwargs) for call in calls]
    return [call.step for call in calls], [nearest_step(value, calibrated) for value in values], values


@pytest.mark.parametrize("name", ["wan2.2-5b-image", "ltx-image"])
def test_a_picture_to_move_has_the_bits_of_the_frames_that_are_denoised(name: str, tmp_path: Path) -> None:
    zoo.build(name, tmp_path / "model")
    sampling = json.loads((tmp_path / "model" / "sampling.json").read_text())
    sampling["call"]["num_inference_steps"] = 4
    (tmp_path / "model" / "sampling.json").write_text(json.dumps(sampling))
    size = (sampling["call"]["width"], sampling["call"]["height"])
    given = Conditions(prompts=("a red circle",), seeds=(5,), inputs=({"image": Image.new("RGB", size, "red")},))
    steps, followed, values = followed_steps(tmp_path / "model", given)
    assert all(float(value.min()) == 0 < float(value.max()) for value in values), "a frame is given"
    assert followed == steps and set(steps) == {0, 1, 2, 3}


def test_a_heun_scheduler_has_a_step_for_each_of_its_timesteps(tmp_path: Path) -> None:
    pipe, call = wan()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    pipe.save_pretrained(tmp_path)
    (tmp_path / "sampling.json").write_text(
        json.dumps({"call": {**call, "num_inference_steps": 4, "guidance_scale": 1.0}})
    )
    steps, followed, _ = followed_steps(tmp_path, Conditions(prompts=("a red circle",), seeds=(5,)))
    assert followed == steps == [0, 1, 1, 2, 2, 3, 3]
