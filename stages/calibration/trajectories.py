"""Recorded runs as units of the capture stage: how they are written, and how later stages read them back."""

from __future__ import annotations

import json
from pathlib import Path

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.calibration.unit_keys import trajectory_unit
from adatsq_pipe.stages.denoiser.call import Trajectory
from adatsq_pipe.stages.denoiser.noise_levels import NoiseLevels
from adatsq_pipe.stages.denoiser.outputs import stacked, structure, unstacked
from adatsq_pipe.storage import arrays, tensors


def write_trajectory(folder: Path, run: Trajectory) -> None:
    """Outputs, final latents, and what rebuilds the outputs' form: one for all calls, or a list where they differ."""
    forms = [json.dumps(structure(output)) for output in run.outputs]
    form = forms[0] if len(set(forms)) == 1 else f"[{', '.join(forms)}]"
    tensors.write(
        folder,
        {**stacked(run.outputs), "latents": run.latents},
        {"steps": run.steps, "timesteps": run.timesteps, "structure": form},
    )


def recorded_levels(context: Context, shard: int) -> NoiseLevels:
    """The steps and timesteps of a recorded calibration run, without its outputs, and not verified."""
    marks = arrays.attributes(context.manifest("capture").local_folder(trajectory_unit(shard)))
    return NoiseLevels(steps=tuple(marks["steps"]), timesteps=tuple(marks["timesteps"]))


def read_trajectory(context: Context, shard: int) -> Trajectory:
    """A recorded calibration run, verified."""
    _, folder = context.read("capture", trajectory_unit(shard))
    stored, marks = tensors.read(folder), arrays.attributes(folder)
    form, count = json.loads(marks["structure"]), len(marks["steps"])
    device = context.settings[ComputeSettings].device
    return Trajectory(
        outputs=tuple(unstacked(stored, form if isinstance(form, list) else [form] * count, device)),
        steps=tuple(marks["steps"]),
        timesteps=tuple(marks["timesteps"]),
        latents=stored["latents"].to(device),
    )
