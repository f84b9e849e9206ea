"""The held-out draws that both the reference and the evaluate stage make: captions times seeds, in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.micro_batch import MicroBatch
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings, ModelSettings, PromptSettings
from adatsq_pipe.stages.base.units import shards
from adatsq_pipe.storage.fingerprint import Plain

if TYPE_CHECKING:
    from torch import Tensor
if TYPE_CHECKING:
    from torch import Tensor

    from adatsq_pipe.stages.denoiser.conditions import Conditions


class EvaluateSettings(PromptSettings):
    """[evaluate]"""

    table: ClassVar[str] = "evaluate"

    prompts: tuple[str, ...] = ()
    """Held-out captions; empty = the built-in world's held-out combinations."""
    inputs: tuple[dict[str, Any], ...] = ()
    """What each caption comes with, from a manifest: `images` by argument, `call`, `seed`."""
    prompts_file: str = ""
    """The same from a file: text with one to a line, JSONL or Parquet with a column prompt. Its contents bear identity,
    its place does not."""
    count: int = Field(default=16, ge=1)
    """How many captions, when they come from the built-in world."""
    seeds: int = Field(default=3, ge=1)
    """Draws per caption, each with the same seed for both models."""
    batch: int = Field(default=6, ge=1)
    seed: int = 7_000


def draws(context: Context) -> list[Conditions]:
    """Captions times seeds, in batches."""
    from adatsq_pipe.stages.denoiser.conditions import asked_for, batched

    settings = context.settings[EvaluateSettings]
    every = [
        one
        for draw in range(settings.seeds)
        for one in asked_for(context, settings.prompts, settings.inputs, settings.seed + draw, draw)
    ]
    return batched(every, settings.batch)


def drawn(
    context: Context, micro: MicroBatch, folder: str, conditions: Conditions, unit: Any
) -> tuple[list[Tensor], Any]:
    """Latents before every step and at the end, [samples, ...] each, and pictures, of the model in `folder`."""
    import torch

    from adatsq_pipe.stages import runtime
    from adatsq_pipe.stages.denoiser.loading import denoiser_of

    denoiser = denoiser_of(context, micro, folder=folder)
    runtime.execute(denoiser.transformer, "simulate")
    states: dict[int, Tensor] = {}

    def see(j: int, call: Any) -> None:
        if call.step not in states:
            found = denoiser.state(call)
            states[call.step] = (torch.stack(found) if len(found) > 1 else found[0]).cpu().clone()

    with unit.timed("model"):
        run = denoiser.record(conditions, decode=True, see=see)
    if run.pictures.ndim not in (4, 5):
        raise StageError(
            f"{type(denoiser.pipe).__name__} draws an array of shape {list(run.pictures.shape)}, no picture or clip; "
            "leave evaluate out: --stages capture..assemble"
        )
    return [states[t] for t in sorted(states)] + [run.latents.cpu()], run.pictures


def draws_identity(settings: RunSettings, model: str) -> dict[str, Plain]:
    """What the draws of both models depend on, besides the quantized one."""
    called = {key: settings[ModelSettings].identity()[key] for key in ("call", "world")}
    return {**settings.identity(ComputeSettings, EvaluateSettings), **called, "model": model}


def batch_count(context: Context) -> int:
    """Batches of captions times seeds."""
    settings = context.settings[EvaluateSettings]
    return len(shards(len(settings.prompts) * settings.seeds, settings.batch))
