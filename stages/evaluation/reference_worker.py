"""The reference draws' worker."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.micro_batch import OutOfMemoryBackoff
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.evaluation.reference import TRUTH
from adatsq_pipe.stages.evaluation.sampling import drawn, draws
from adatsq_pipe.stages.scenes.world import scorer
from adatsq_pipe.stages.scenes.world.prompts import parse_prompt
from adatsq_pipe.storage import tensors

TRUE_SCENES = 1000


def true_features(context: Context) -> Tensor:
    """Features of ground-truth renderings: those that an ideal model's pictures would have."""

    settings, world = context.settings[EvaluateSettings], context.settings[ModelSettings].world
    wanted = [parse_prompt(prompt, world) for prompt in settings.prompts]
    rng = np.random.default_rng([settings.seed, 1])
    return torch.from_numpy(
        scorer.features(scorer.ground_truth([wanted[i % len(wanted)] for i in range(TRUE_SCENES)], rng))
    )


class Reference(OutOfMemoryBackoff):
    """Worker of the full-precision draws, and of the true scenes' features."""

    stage: ClassVar[str] = "reference"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.batches = draws(context)

    def __call__(self, key: str) -> None:
        with unit_of(self.context, self.stage, key, self.micro) as unit:
            if key == TRUTH:
                tensors.write(unit.folder, {"features": true_features(self.context)})
                return
            states, pictures = drawn(self.context, self.micro, None, self.batches[int(key.partition("/")[2])], unit)
            found = {"latents": states[-1], "pictures": pictures}
            tensors.write(unit.folder, {"states": tensors.Stack(states[:-1]), **found})
