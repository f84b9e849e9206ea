"""Reference: the full-precision draws that every quantized model of a run directory is compared with.

They depend on no quantized model, so they are drawn once for all of them. Units: `draw/<batch>` (latents before every
step and at the end, and pictures) and, where the model draws the built-in world, `truth` (features of true scenes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from adatsq_pipe.stages.base.context import Context, Executor, Report
from adatsq_pipe.stages.base.micro_batch import Halving
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import fan_out, unit_of
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings, batch_count, drawn, draws, draws_identity

if TYPE_CHECKING:
    from torch import Tensor


TRUTH = "truth"


TRUE_SCENES = 1000


def true_features(context: Context) -> Tensor:
    """Features of rendered scenes that are what is asked for: what a perfect model's pictures would have."""
    import numpy as np
    import torch

    from adatsq_pipe.stages.scenes.world import scorer
    from adatsq_pipe.stages.scenes.world.prompts import parse_prompt

    settings, drawn = context.settings[EvaluateSettings], context.settings[ModelSettings].world
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


def _units(context: Context) -> list[str]:
    truth = [TRUTH] if context.settings[ModelSettings].world else []
    return [*truth, *(f"draw/{i:03d}" for i in range(batch_count(context)))]


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, Reference, _units(context), report)


STAGE = Stage(
    name="reference",
    version=4,
    needs=(),
    reads=draws_identity,
    run=run,
    expected=lambda context: len(_units(context)),
    settings=EvaluateSettings,
)
