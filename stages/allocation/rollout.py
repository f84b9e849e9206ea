"""The search's worker: it extends a path by one step, or rolls a whole one out, on a slice of the captions.

A path is its list of denoiser outputs, so its state at any step comes from teleporting through the pipeline's own loop.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from adatsq_pipe.stages.allocation import batch_slices
from adatsq_pipe.stages.allocation.batch_slices import BatchSlice, unit_name
from adatsq_pipe.stages.allocation.trellis import Trellis
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.micro_batch import OutOfMemoryBackoff
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.calibration.trajectories import read_trajectory
from adatsq_pipe.stages.denoiser.call import Call, Trajectory
from adatsq_pipe.stages.denoiser.conditions import Conditions, calibration_shards
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.denoiser.outputs import leaves, of_samples, stacked, structure, unstacked
from adatsq_pipe.stages.numerics.beam import Choices
from adatsq_pipe.stages.numerics.metrics import mean_log_error, relative_error
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, Policy
from adatsq_pipe.stages.runtime.policy_hook import set_bits
from adatsq_pipe.stages.weights.solved import load_solved
from adatsq_pipe.storage import tensors

OFF = 1e-4
"""Relative error of the final latents above which a slice is not what was recorded of its captions."""


class SliceReference:
    """A slice of the captions with its full-precision run: what was recorded, and the latents before every step and
    at the end. Paths that were walked on it stay here."""

    def __init__(self, denoiser: Denoiser, piece: BatchSlice, batch: Conditions, recorded: Trajectory) -> None:
        self.captions = cut(batch, piece)
        self.recorded = [_of(piece, output) for output in recorded.outputs]
        self.latents = latents_of(piece, recorded.latents)
        states: dict[int, list[Tensor]] = {}

        def see(j: int, call: Call) -> None:
            states.setdefault(call.step, [x.clone() for x in denoiser.state(call)])

        latents, _ = denoiser.replay(self.captions, self.recorded, see=see)
        alike = latents.shape == self.latents.shape
        if not piece.whole and (not alike or relative_error(latents, self.latents) > OFF):
            raise StageError(
                f"captions {piece.start} to {piece.stop - 1} of a batch of {piece.of} do not give on their own "
                "what was recorded of them: this pipeline's batches cannot be cut; set search.samples=0"
            )
        self.states = [states[t] for t in range(len(states))] + [[latents]]
        self.outputs: dict[Choices, list[Any]] = {}
        self.arrived: dict[Choices, Any] = {}

    def forget(self, before: int) -> None:
        """Drop paths shorter than `before` steps."""
        for by_path in (self.outputs, self.arrived):
            for old in [path for path in by_path if len(path) < before]:
                del by_path[old]


def cut(batch: Conditions, piece: BatchSlice) -> Conditions:
    """The captions of a slice of their batch."""

    part = slice(piece.start, piece.stop)
    return Conditions(prompts=batch.prompts[part], seeds=batch.seeds[part], inputs=batch.inputs[part])


def latents_of(piece: BatchSlice, latents: Tensor) -> Tensor:
    """A slice's share of its batch's final latents, [samples, ...] or [samples x frames, ...]."""
    rows = len(latents) // piece.of
    return latents if piece.whole else latents[piece.start * rows : piece.stop * rows]


def _of(piece: BatchSlice, output: Any) -> Any:

    return output if piece.whole else of_samples(output, piece.of, piece.start, piece.stop)


class BeamWorker(OutOfMemoryBackoff):
    """The worker: holds the model with its solved weights."""

    stage: ClassVar[str] = "search"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context, self.space = context, Trellis(context)
        survey, data = self.space.survey, context.settings[DataSettings]
        self.denoiser = denoiser_of(context, self.micro, to_change=True)
        policy = Policy.uniform(survey.steps, len(survey.layers), WEIGHT_ONLY)
        self.layers = list(load_solved(context, self.denoiser.transformer, policy).values())
        self.batches = calibration_shards(context)
        self.slices = {
            "path": BatchSlice.for_trellis(data, self.space.settings),
            "rollout": BatchSlice.for_rollouts(data, self.space.settings),
        }
        self._references: dict[int, SliceReference] = {}
        self._recorded: dict[int, Trajectory] = {}

    def __call__(self, key: str) -> float:
        kind, choices, place = batch_slices.read_key(key)
        return self._extend(choices, place) if kind == "path" else self._roll_out(choices, place)

    def _run_of(self, batch: int) -> Trajectory:
        if batch not in self._recorded:
            self._recorded[batch] = read_trajectory(self.context, batch)
        return self._recorded[batch]

    def _reference(self, place: int) -> SliceReference:
        if place not in self._references:
            piece = self.slices["path"][place]
            recorded = self._run_of(piece.batch)
            self._references[place] = SliceReference(self.denoiser, piece, self.batches[piece.batch], recorded)
        return self._references[place]

    def _outputs_of(self, choices: Choices, place: int) -> list[Any]:
        """Denoiser outputs of a path: from memory, from the units that computed them, or computed again."""

        if not choices:
            return []
        reference, unit = self._reference(place), unit_name("path", choices, place)
        if choices not in reference.outputs:
            if not self.context.manifest("search").done(unit):
                self._extend(choices, place)
                return reference.outputs[choices]
            before = self._outputs_of(choices[:-1], place)
            stored = tensors.read_scratch(self.context.read("search", unit)[1])
            calls = self.space.survey.calls_at(len(choices) - 1)
            shapes = [structure(output) for output in reference.recorded[len(before) : len(before) + calls]]
            reference.outputs[choices] = before + unstacked(stored, shapes, reference.latents.device)
        return reference.outputs[choices]

    def _extend(self, choices: Choices, place: int) -> float:
        step, reference = len(choices) - 1, self._reference(place)
        reference.forget(step)
        outputs = list(self._outputs_of(choices[:-1], place))
        unit_key = unit_name("path", choices, place)
        with unit_of(self.context, self.stage, unit_key, self.micro) as unit, torch.no_grad():
            set_bits(self.layers, self.space.whole_row(step, self.space.bits_of(step, choices[-1])))
            calls = self.space.survey.calls_at(step)
            if choices[:-1] not in reference.arrived:
                reference.arrived[choices[:-1]] = self.denoiser.teleport(reference.captions, outputs)
            arrived = reference.arrived[choices[:-1]]
            for _ in range(calls):
                assert isinstance(arrived, Call)
                with unit.timed("model"):
                    outputs.append(self.denoiser.run(arrived))
                arrived = self.denoiser.teleport(reference.captions, outputs)
            reference.arrived[choices] = arrived
            error = self._error(reference, step, outputs, calls, arrived)
            tensors.write_scratch(unit.folder, stacked(outputs[-calls:]))
            samples = self.slices["path"][place].samples
            unit.value = {"choices": list(choices), "error": error, "calls": calls, "samples": samples}
        reference.outputs[choices] = outputs
        return error

    def _error(self, reference: SliceReference, step: int, outputs: list[Any], calls: int, arrived: Any) -> float:
        if self.space.settings.error == "state":
            got, wanted = self.denoiser.state(arrived), reference.states[step + 1]
        else:
            place = len(outputs) - calls
            got = [x for output in outputs[place:] for x in leaves(output)]
            wanted = [x for output in reference.recorded[place : place + calls] for x in leaves(output)]
        return sum(relative_error(g, w) for g, w in zip(got, wanted, strict=True)) / len(got)

    def _roll_out(self, choices: Choices, place: int) -> float:
        piece = self.slices["rollout"][place]
        with unit_of(self.context, self.stage, unit_name("rollout", choices, place), self.micro) as unit:
            captions = cut(self.batches[piece.batch], piece)
            rows = [self.space.whole_row(t, self.space.bits_of(t, c)) for t, c in enumerate(choices)]
            with unit.timed("model"):
                run = self.denoiser.record(captions, see=lambda j, call: set_bits(self.layers, rows[call.step]))
            wanted = latents_of(piece, self._run_of(piece.batch).latents)
            error = mean_log_error(run.latents, wanted, piece.samples)
            samples = {"calls": len(run.outputs), "samples": piece.samples}
            unit.value = {"choices": list(choices), "error": error, **samples}
        return error
