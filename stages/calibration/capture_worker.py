"""Capture's worker: surveys layers, and records runs while it samples the layers' inputs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace
from typing import ClassVar

import torch

from adatsq_pipe.stages.architecture.layers import known_to_repeat, quantizable_linears, skipped_modules
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.micro_batch import OutOfMemoryBackoff
from adatsq_pipe.stages.base.survey import CallSurvey, Survey
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.calibration.first_calls import FirstCall, FirstCalls
from adatsq_pipe.stages.calibration.input_samples import InputSamples
from adatsq_pipe.stages.calibration.recorded_blocks import RecordedBlocks
from adatsq_pipe.stages.calibration.survey import CaptureSettings, step_blocks, survey_of
from adatsq_pipe.stages.calibration.trajectories import read_trajectory, write_trajectory
from adatsq_pipe.stages.calibration.unit_keys import BlockKey, read_block_key, read_trajectory_unit
from adatsq_pipe.stages.denoiser.call import Call, Trajectory
from adatsq_pipe.stages.denoiser.conditions import calibration_shards
from adatsq_pipe.stages.denoiser.inspection import grouped
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.denoiser.noise_levels import NoiseLevels, check_alike
from adatsq_pipe.stages.denoiser.pipeline_call import check_timesteps


class Capture(OutOfMemoryBackoff):
    """The stage's worker."""

    stage: ClassVar[str] = "capture"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.denoiser = denoiser_of(context, self.micro)
        self.shards = calibration_shards(context)
        self.layers = quantizable_linears(self.denoiser.transformer)
        if not self.layers:
            raise StageError(
                "the transformer has no linear layers inside repeated blocks; there is nothing to quantize"
            )
        parts = self.denoiser.parts
        self.layers_of = {
            part: {name: x for name, x in self.layers.items() if len(parts) == 1 or name.startswith(f"{part}.")}
            for part in parts
        }
        self.first: FirstCall | None = None
        """The first call of the first batch, if this worker made it for the survey."""

    def recover(self, key: str, error: BaseException) -> bool:
        self.first = None  # it was made with more samples at a time
        return super().recover(key, error)

    def __call__(self, key: str) -> None:
        """Do a unit; `trajectory/<batch>` stands for all units of the batch, of which it does what is missing."""
        kind = key.partition("/")[0]
        works = {"trajectory": self._batch, "survey": self._survey, "activations": self._activations}
        {**works, "left": self._left}[kind](key)

    def _survey(self, key: str) -> None:
        known = {part: known_to_repeat(self.denoiser.parts[part], own) for part, own in self.layers_of.items()}
        look = FirstCalls(self.layers_of, self.context.settings[CaptureSettings].rows, known)
        with unit_of(self.context, self.stage, key, self.micro) as unit, torch.no_grad():
            with unit.timed("model"):
                calls = self.denoiser.rehearse(self.shards[0], look.around)
                seen, steps_of_component = self._surveyed(calls, look)
            levels = NoiseLevels.of(calls)
            unit.value = Survey(
                layers=seen.layers,
                unused=seen.unused,
                repeated=seen.repeated,
                step_of_call=levels.steps,
                timesteps=levels.noisiest(),
                parameters=sum(p.numel() for p in self.denoiser.transformer.parameters()),
                steps_of_component=steps_of_component,
            ).plain()
        self.first = look.kept

    def _left(self, key: str) -> None:
        with unit_of(self.context, self.stage, key) as unit:
            unit.value = [
                {"part": name, **asdict(group)}
                for name, part in self.denoiser.parts.items()
                for group in grouped(skipped_modules(part))
            ]

    def _surveyed(self, calls: list[Call], look: FirstCalls) -> tuple[CallSurvey, dict[str, tuple[int, ...]]]:
        """What the first call of every denoiser shows; and, of several, at which steps each is called."""
        parts, samples = self.denoiser.parts, len(self.shards[0].prompts)
        if len(parts) == 1:
            return look.survey(calls[0].part, samples), {}
        seen, steps = list[CallSurvey](), dict[str, tuple[int, ...]]()
        for part in parts:
            own = [call for call in calls if call.part == part]
            if not own:
                raise StageError(f"{part} is never called; ask for more steps in model.call.num_inference_steps")
            shown = look.survey(part, samples)
            seen.append(replace(shown, layers=tuple(replace(layer, component=part) for layer in shown.layers)))
            steps[part] = tuple(sorted({call.step for call in own}))
        together = CallSurvey(
            layers=tuple(layer for one in seen for layer in one.layers),
            unused=tuple(name for one in seen for name in one.unused),
            repeated=tuple(name for one in seen for name in one.repeated),
        )
        return together, steps

    def _batch(self, key: str) -> None:
        """Do what is missing of a batch: its run, with samples of the inputs, or samples alone if the run is there."""
        batch, manifest = read_trajectory_unit(key), self.context.manifest(self.stage)
        blocks = step_blocks(self.context, survey_of(self.context).steps)
        units = [BlockKey(block, batch).activations for block in range(len(blocks))]
        *missing, run = manifest.missing([*units, key]) or [""]
        if run != key:
            for unit in filter(None, [*missing, run]):
                self._activations(unit)
        else:
            self._record(key, missing)

    def _record(self, key: str, missing: Collection[str]) -> None:
        """Record a run, and meanwhile those units of the batch's inputs that are missing."""
        batch, survey, sizes = read_trajectory_unit(key), survey_of(self.context), dict[int, list[tuple[int, ...]]]()
        samples = {unit: self._samples(read_block_key(unit), survey) for unit in missing}
        blocks = RecordedBlocks(self.context, samples, self.micro)
        first, self.first = (self.first, None) if batch == 0 else (None, self.first)

        def see(place: int, call: Call) -> None:
            if call.step not in sizes:
                sizes[call.step] = [tuple(x.shape) for x in self.denoiser.state(call)]
            blocks.see(call)
            if place == 0 and first is not None:
                blocks.take(call, first.sampler)

        with unit_of(self.context, self.stage, key, self.micro) as unit:
            after = [] if first is None else [first.output]
            with unit.timed("model"):
                run = self.denoiser.record(self.shards[batch], see=see, after=after, around=blocks.around)
            unit.elsewhere -= blocks.seconds
            unit.seconds["model"] -= blocks.seconds
            self._check(batch, run, sizes, survey)
            write_trajectory(unit.folder, run)
            unit.value = {"calls": len(run.outputs), "samples": len(self.shards[batch].prompts)}
        blocks.close()

    def _samples(self, at: BlockKey, survey: Survey) -> InputSamples:
        return InputSamples(
            at=at,
            steps=step_blocks(self.context, survey.steps)[at.block],
            survey=survey,
            layers={row.name: self.layers[row.name] for row in survey.layers},
            rows=self.context.settings[CaptureSettings].rows,
        )

    def _check(self, batch: int, run: Trajectory, sizes: dict[int, list[tuple[int, ...]]], survey: Survey) -> None:
        """Raise StageError for a run that cannot be calibrated on."""
        check_timesteps(run.timesteps)
        if other := next((t for t, size in sizes.items() if size != sizes[0]), 0):
            raise StageError(
                f"the noisy sample is {sizes[0]} at the first step and {sizes[other]} at step {other}: pipelines "
                "whose latents change size over a run cannot be taken"
            )
        self._check_levels(batch, run, survey)

    def _check_levels(self, batch: int, run: Trajectory, survey: Survey) -> None:
        """Raise StageError for a run of other noise levels than the survey saw."""
        levels = NoiseLevels(steps=run.steps, timesteps=run.timesteps)
        if levels.steps == survey.step_of_call and levels.noisiest() == survey.timesteps:
            return
        times = tuple(survey.timesteps[step] for step in survey.step_of_call)
        first = NoiseLevels(steps=survey.step_of_call, timesteps=times)
        check_alike("data", self.shards[batch], levels, self.shards[0], first)

    def _activations(self, key: str) -> None:
        """Sample the inputs of a block of steps, of a run that was recorded before."""
        at, calls, survey = read_block_key(key), list[Call](), survey_of(self.context)
        samples, run = self._samples(at, survey), read_trajectory(self.context, at.batch)
        with unit_of(self.context, self.stage, key, self.micro) as unit, torch.no_grad():
            self._check_levels(at.batch, run, survey)
            self.denoiser.replay(
                self.shards[at.batch], run.outputs,
                see=lambda j, call: calls.append(call) if call.step in samples.steps else None,
            )  # fmt: skip
            with unit.timed("model"):
                for call in calls:
                    self.denoiser.run(call, samples.around)
            unit.seconds["model"] -= samples.seconds
            samples.write(unit.folder)
