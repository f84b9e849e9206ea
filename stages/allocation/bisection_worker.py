"""The worker of a bisection: rounds the activations of one step at a time, and rolls the policy out."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch

from adatsq_pipe.stages.allocation.batch_slices import BatchSlice, weighted_mean
from adatsq_pipe.stages.allocation.bisection import ROLLOUT, measured_slice, policy_bits
from adatsq_pipe.stages.allocation.rollout import cut, latents_of
from adatsq_pipe.stages.allocation.step_rows import rounded_layers, row_of
from adatsq_pipe.stages.allocation.trellis import SearchSettings, widths_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.micro_batch import OutOfMemoryBackoff
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.base.units import Unit, unit_of
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.calibration.trajectories import read_trajectory
from adatsq_pipe.stages.denoiser.call import Trajectory
from adatsq_pipe.stages.denoiser.conditions import Conditions, calibration_shards
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.numerics.metrics import mean_log_error, relative_error
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, Policy
from adatsq_pipe.stages.runtime.policy_hook import set_bits
from adatsq_pipe.stages.weights.solved import load_solved


class StepErrors(OutOfMemoryBackoff):
    """The worker: holds the model with its solved weights."""

    stage: ClassVar[str] = "search"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context, self.survey = context, survey_of(context)
        self.settings, self.rounded = context.settings[SearchSettings], rounded_layers(self.survey)
        self.denoiser = denoiser_of(context, self.micro, to_change=True)
        policy = Policy.uniform(self.survey.steps, len(self.survey.layers), WEIGHT_ONLY)
        self.layers = list(load_solved(context, self.denoiser.transformer, policy).values())
        self.batches = calibration_shards(context)

    def __call__(self, key: str) -> None:
        with unit_of(self.context, self.stage, key, self.micro) as unit, torch.no_grad():
            if key == ROLLOUT:
                self._roll_out(unit)
            else:
                self._measure(int(key.partition("/")[2]), unit)

    @cached_property
    def _captions(self) -> Conditions:
        piece = measured_slice(self.context.settings[DataSettings], self.settings)
        return cut(self.batches[piece.batch], piece)

    @cached_property
    def _unrounded(self) -> Trajectory:
        """The run with rounded weights and no rounded activations."""
        set_bits(self.layers, [WEIGHT_ONLY] * len(self.layers))
        return self.denoiser.record(self._captions)

    def _measure(self, step: int, unit: Unit) -> None:
        """The error of the final latents with the step at every width. Calls before the step are not made again."""
        with unit.timed("model"):
            whole, errors = self._unrounded, list[float]()
            before = [output for output, of in zip(whole.outputs, whole.steps, strict=True) if of < step]
            for bits in widths_of(self.settings, "bisection"):
                run = self._run(self._captions, {step: bits}, before)
                errors.append(relative_error(run.latents, whole.latents))
                unit.calls += len(run.outputs) - len(before)
        unit.value = {"errors": errors}

    def _run(self, captions: Conditions, bits: dict[int, int], before: list[object]) -> Trajectory:
        """A run with the activations of some steps at `bits`; the first outputs are those of `before`."""
        rows = [row_of(self.survey, here, bits.get(t, WEIGHT_ONLY)) for t, here in enumerate(self.rounded)]
        return self.denoiser.record(
            captions, see=lambda j, call: set_bits(self.layers, rows[call.step]), after=before
        )  # fmt: skip

    def _roll_out(self, unit: Unit) -> None:
        """The error of the policy's own run against the full-precision one that was recorded."""
        bits = policy_bits(self.context)
        parts, errors = BatchSlice.for_rollouts(self.context.settings[DataSettings], self.settings), dict[int, float]()
        for place, piece in enumerate(parts):
            with unit.timed("model"):
                run = self._run(cut(self.batches[piece.batch], piece), dict(enumerate(bits)), [])
            unit.calls += len(run.outputs)
            wanted = latents_of(piece, read_trajectory(self.context, piece.batch).latents)
            errors[place] = mean_log_error(run.latents, wanted, piece.samples)
        samples = sum(piece.samples for piece in parts)
        calls = len(self.survey.step_of_call)
        unit.value = {"choices": list(bits), "error": weighted_mean(errors, parts), "samples": samples, "calls": calls}
