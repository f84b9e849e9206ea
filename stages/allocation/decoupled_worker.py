"""The worker of decoupled allocation: rounds the activations of one layer at a time."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from adatsq_pipe.stages.allocation.trellis import SearchSettings, widths_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.micro_batch import OutOfMemoryBackoff
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.calibration.trajectories import read_trajectory
from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.conditions import calibration_shards
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.denoiser.outputs import leaves
from adatsq_pipe.stages.numerics.metrics import relative_error
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, Policy
from adatsq_pipe.stages.runtime.policy_hook import set_bits
from adatsq_pipe.stages.weights.solved import load_solved

STEPS = 3
"""Timesteps at which sensitivities are measured, evenly from the first to the last."""


class Sensitivity(OutOfMemoryBackoff):
    """The worker: holds the model with its solved weights, and rounds the activations of one layer at a time."""

    stage: ClassVar[str] = "search"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context, self.survey = context, survey_of(context)
        self.bits = widths_of(context.settings[SearchSettings], "decoupled")
        shards, steps = calibration_shards(context), self.survey.steps
        self.denoiser = denoiser_of(context, self.micro, to_change=True)
        policy = Policy.uniform(steps, len(self.survey.layers), WEIGHT_ONLY)
        self.layers = list(load_solved(context, self.denoiser.transformer, policy).values())
        wanted = {round(i * (steps - 1) / (STEPS - 1)) for i in range(STEPS)}
        self.calls = list[Call]()

        def see(j: int, call: Call) -> None:
            if call.step in wanted:
                self.calls.append(call)

        self.denoiser.replay(shards[0], read_trajectory(context, 0).outputs, see=see)
        self._whole: list[list[Tensor]] | None = None

    def _unrounded(self) -> list[list[Tensor]]:
        """The outputs with no activation rounded."""
        if self._whole is None:
            row = [WEIGHT_ONLY] * len(self.layers)
            self._whole = [self._outputs(call, row) for call in self.calls]
        return self._whole

    def _outputs(self, call: Any, row: list[int]) -> list[Tensor]:
        """The outputs of `call` with the layers' activations at the bits of `row`."""
        set_bits(self.layers, row)
        return leaves(self.denoiser.run(call))

    def __call__(self, key: str) -> None:
        layer = int(key.partition("/")[2])
        with unit_of(self.context, self.stage, key, self.micro) as unit, torch.no_grad():
            errors, whole = [], self._unrounded()
            for bits in self.bits:
                row = [bits if i == layer else WEIGHT_ONLY for i in range(len(self.layers))]
                with unit.timed("model"):
                    got = [self._outputs(call, row) for call in self.calls]
                pairs = [pair for a, b in zip(got, whole, strict=True) for pair in zip(a, b, strict=True)]
                errors.append(sum(relative_error(g, w) for g, w in pairs) / len(pairs))
            unit.calls = len(self.bits) * len(self.calls)
            unit.value = {"errors": errors}
