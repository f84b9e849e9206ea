"""Reference draws: the full-precision pictures that every quantized model of a run is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.micro_batch import Halving, MicroBatch
from adatsq_pipe.stages.base.settings import ModelSettings, Settings
from adatsq_pipe.stages.base.units import unit_of

if TYPE_CHECKING:
    from torch import Tensor

    from adatsq_pipe.stages.denoiser.conditions import Conditions


class EvaluateSettings(Settings):
    """[evaluate]"""

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

    settings = context.settings("evaluate", EvaluateSettings)
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


TRUTH = "truth"


TRUE_SCENES = 1000


def true_features(context: Context) -> Tensor:
    """Features of rendered scenes that are what is asked for: what a perfect model's pictures would have."""
    import numpy as np
    import torch

    from adatsq_pipe.stages.scenes.world import scorer
    from adatsq_pipe.stages.scenes.world.prompts import parse_prompt

    settings, drawn = context.settings("evaluate", EvaluateSettings), context.settings("model", ModelSettings).world
    wanted = [parse_prompt(prompt, drawn) for prompt in settings.prompts]
    rng = np.random.default_rng([settings.seed, 1])
    return torch.from_numpy(
        scorer.features(scorer.ground_truth([wanted[i % len(wanted)] for i in range(TRUE_SCENES)], rng))
    )


class Reference(Halving):
    """Worker of the full-precision draws, and of the true scenes' features."""

    stage: ClassVar[str] = "reference"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.batches = draws(context)

    def __call__(self, key: str) -> None:
        import torch

        from adatsq_pipe.storage import tensors

        with unit_of(self.context, self.stage, key, self.micro) as unit:
            if key == TRUTH:
                tensors.write(unit.folder, {"features": true_features(self.context)})
                return
            states, pictures = drawn(self.context, self.micro, "", self.batches[int(key.partition("/")[2])], unit)
            stacked = {"states": torch.stack(states[:-1]), "latents": states[-1], "pictures": pictures}
            tensors.write(unit.folder, stacked)
