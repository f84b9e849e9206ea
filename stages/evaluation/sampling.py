"""Draws of either model, with the latents before every step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from adatsq_pipe.stages import runtime
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.micro_batch import MicroBatch
from adatsq_pipe.stages.base.units import Unit
from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.conditions import Conditions, batched, conditions_of
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.evaluation.bits_run import BitsRun
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings


def draws(context: Context) -> list[Conditions]:
    """Captions times seeds, in batches."""

    settings = context.settings[EvaluateSettings]
    every = [
        one
        for draw in range(settings.seeds)
        for one in conditions_of(context, settings.prompts, settings.inputs, settings.seed + draw, draw)
    ]
    return batched(every, settings.batch)


def drawn(
    context: Context, micro: MicroBatch, folder: Path | None, conditions: Conditions, unit: Unit
) -> tuple[list[Tensor], Tensor]:
    """Latents before every step and at the end, [samples, ...] each, and pictures.

    Of the model in `folder`; None is the full-precision model.
    """
    return followed(denoiser_of(context, micro, folder=folder), conditions, unit)


def followed(denoiser: Denoiser, conditions: Conditions, unit: Unit) -> tuple[list[Tensor], Tensor]:
    """Latents before every step and at the end, [samples, ...] each, and pictures, of the denoiser as it is.

    Of a quantized model the unit's value says the mean activation bits that it ran at.
    """
    runtime.execute(denoiser.transformer, "simulate")
    states: dict[int, Tensor] = {}
    bits_run = BitsRun(denoiser.parts)

    def see(j: int, call: Call) -> None:
        bits_run.see(call)
        if call.step not in states:
            found = denoiser.state(call)
            states[call.step] = (torch.stack(found) if len(found) > 1 else found[0]).cpu().clone()

    with unit.timed("model"):
        run = denoiser.record(conditions, decode=True, see=see, keep=False)
    if run.pictures.ndim not in (4, 5):
        raise StageError(
            f"{type(denoiser.pipe).__name__} draws an array of shape {list(run.pictures.shape)}, no picture or clip; "
            "leave evaluate out: --stages capture..assemble"
        )
    if bits_run.mean is not None:
        unit.value = {"activation_bits": bits_run.mean}
    return [states[t] for t in sorted(states)] + [run.latents.cpu()], run.pictures
