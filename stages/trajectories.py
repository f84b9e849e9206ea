"""Recorded runs as units of the capture stage: how they are written, and how later stages read them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adatsq_pipe.stages.base import ComputeSettings, Context, DataSettings, ModelSettings, shards
from adatsq_pipe.stages.denoiser import Conditions, Denoiser, Trajectory
from adatsq_pipe.stages.given import arguments_of, picture_mode
from adatsq_pipe.stages.memory import plan_of, surveyed
from adatsq_pipe.stages.micro import MicroBatch
from adatsq_pipe.stages.opened import open_denoiser, take_denoiser
from adatsq_pipe.stages.outputs import stacked, structure, unstacked
from adatsq_pipe.storage import arrays, tensors
from adatsq_pipe.storage.rundir import RunDir


def denoiser_of(
    context: Context, micro: MicroBatch | None = None, *, folder: str = "", to_change: bool = False
) -> Denoiser:
    """The run's full-precision model (or the one in `folder`), open here, for a worker with that micro-batch; its
    blocks take turns on the device where the memory plan has it so.

    `to_change` gives one that no later stage will be handed.
    """
    compute, model = context.settings("compute", ComputeSettings), context.settings("model", ModelSettings)
    opener, plan = take_denoiser if to_change else open_denoiser, plan_of(context, surveyed(context))
    denoiser = opener(
        folder or context.model,
        dtype=compute.dtype,
        device=compute.device,
        threads=compute.threads,
        call=model.call,
        blockwise=plan is not None and plan.blockwise,
    )
    denoiser.micro = micro or MicroBatch()
    return denoiser


def calibration_shards(context: Context) -> list[Conditions]:
    """The calibration captions with their seeds, cut into the batches they are run in."""
    data = context.settings("data", DataSettings)
    return batched(asked_for(context, data.prompts, data.inputs, data.seed), data.batch)


def asked_for(
    context: Context, prompts: tuple[str, ...], inputs: tuple[dict[str, Any], ...], seed: int, draw: int = 0
) -> list[Conditions]:
    """Each caption alone, with what it comes with and a seed of its own (its manifest's, moved on by `draw`)."""
    found, find, mode = [], RunDir.at(context.run).given, picture_mode(Path(context.model))
    for i, prompt in enumerate(prompts):
        given = inputs[i] if inputs else {}
        own = given["seed"] + 1_000_003 * draw if "seed" in given else 1_000_003 * seed + i
        more = (arguments_of(find, given, mode),) if inputs else ()
        found.append(Conditions(prompts=(prompt,), seeds=(own,), inputs=more))
    return found


def batched(each: list[Conditions], size: int) -> list[Conditions]:
    """Conditions of one caption each, `size` to a batch."""
    return [
        Conditions(
            prompts=tuple(p for i in part for p in each[i].prompts),
            seeds=tuple(s for i in part for s in each[i].seeds),
            inputs=tuple(given for i in part for given in each[i].inputs),
        )
        for part in shards(len(each), size)
    ]


def write_trajectory(folder: Path, run: Trajectory) -> None:
    """Outputs, final latents, and what rebuilds the outputs' form: one for all calls, or a list where they differ."""
    forms = [json.dumps(structure(output)) for output in run.outputs]
    form = forms[0] if len(set(forms)) == 1 else f"[{', '.join(forms)}]"
    tensors.write(
        folder,
        {**stacked(run.outputs), "latents": run.latents},
        {"steps": run.steps, "timesteps": run.timesteps, "structure": form},
    )


def read_trajectory(context: Context, shard: int) -> Trajectory:
    """A recorded calibration run, verified."""
    _, folder = context.read("capture", f"trajectory/{shard:03d}")
    stored, marks = tensors.read(folder), arrays.attributes(folder)
    form, count = json.loads(marks["structure"]), len(marks["steps"])
    device = context.settings("compute", ComputeSettings).device
    return Trajectory(
        outputs=tuple(unstacked(stored, form if isinstance(form, list) else [form] * count, device)),
        steps=tuple(marks["steps"]),
        timesteps=tuple(marks["timesteps"]),
        latents=stored["latents"].to(device),
    )
