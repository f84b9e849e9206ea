"""Capture's worker: records runs, surveys layers, samples their inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adatsq_pipe.stages.architecture.layers import quantizable_linears, skipped_modules
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.micro_batch import OutOfMemoryBackoff
from adatsq_pipe.stages.base.survey import CallSurvey, Survey
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.calibration.survey import (
    CaptureSettings,
    step_blocks,
    survey_of,
)
from adatsq_pipe.stages.calibration.trajectories import read_trajectory, recorded_levels, write_trajectory
from adatsq_pipe.stages.calibration.unit_keys import read_block_key, read_trajectory_unit
from adatsq_pipe.stages.denoiser.conditions import calibration_shards
from adatsq_pipe.stages.denoiser.denoiser import Call
from adatsq_pipe.stages.denoiser.hooks import InputRecorder, RowSampler, equalize, listen, survey
from adatsq_pipe.stages.denoiser.inspection import grouped
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.denoiser.noise_levels import NoiseLevels, check_alike
from adatsq_pipe.stages.denoiser.outputs import leaves
from adatsq_pipe.stages.denoiser.pipeline_call import check_timesteps
from adatsq_pipe.storage import tensors


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

    def __call__(self, key: str) -> None:
        kind = key.partition("/")[0]
        works = {"trajectory": self._trajectory, "survey": self._survey, "activations": self._activations}
        {**works, "left": self._left}[kind](key)

    def _trajectory(self, key: str) -> None:
        shard = read_trajectory_unit(key)
        with unit_of(self.context, self.stage, key, self.micro) as unit:
            sizes: dict[int, list[tuple[int, ...]]] = {}

            def see(_: int, call: Call) -> None:
                if call.step not in sizes:
                    sizes[call.step] = [tuple(x.shape) for x in self.denoiser.state(call)]

            with unit.timed("model"):
                run = self.denoiser.record(self.shards[shard], see=see)
            check_timesteps(run.timesteps)
            if other := next((t for t, size in sizes.items() if size != sizes[0]), 0):
                raise StageError(
                    f"the noisy sample is {sizes[0]} at the first step and {sizes[other]} at step {other}: pipelines "
                    "whose latents change size over a run cannot be taken"
                )
            for j, output in enumerate(run.outputs):
                if not all(leaf.isfinite().all() for leaf in leaves(output)):
                    raise self._blame(shard, run, j)
            write_trajectory(unit.folder, run)
            unit.value = {"calls": len(run.outputs), "samples": len(self.shards[shard].prompts)}

    def _blame(self, shard: int, run: Any, j: int) -> StageError:
        """The error for a call whose output is not finite: it names the first layer that is fed such values."""
        call = self.denoiser.teleport(self.shards[shard], run.outputs[:j])
        assert isinstance(call, Call)
        with torch.no_grad():
            listener = listen(partial(self.denoiser.run, call), InputRecorder(self.layers))
        fed = (name for name, x in listener.inputs.items() if not x.isfinite().all())
        return _not_finite(next(fed, "after the last block"), call)

    def _calls(self, shard: int, steps: range) -> list[Call]:
        run, calls = read_trajectory(self.context, shard), []
        self.denoiser.replay(
            self.shards[shard], run.outputs, see=lambda j, call: calls.append(call) if call.step in steps else None
        )
        return calls

    def _survey(self, key: str) -> None:
        with unit_of(self.context, self.stage, key, self.micro) as unit, torch.no_grad():
            run, samples = read_trajectory(self.context, 0), len(self.shards[0].prompts)
            self._check_alike(NoiseLevels(steps=run.steps, timesteps=run.timesteps))
            steps = run.steps[-1] + 1
            calls = self._calls(0, range(steps if len(self.denoiser.parts) > 1 else 1))
            with unit.timed("model"):
                seen, steps_of_component = self._surveyed(calls, samples)
            noisiest = max if run.timesteps[0] >= run.timesteps[-1] else min
            times = [
                noisiest(t for t, s in zip(run.timesteps, run.steps, strict=True) if s == step) for step in range(steps)
            ]
            unit.value = Survey(
                layers=seen.layers,
                unused=seen.unused,
                repeated=seen.repeated,
                step_of_call=run.steps,
                timesteps=tuple(times),
                parameters=sum(p.numel() for p in self.denoiser.transformer.parameters()),
                steps_of_component=steps_of_component,
            ).plain()

    def _check_alike(self, first: NoiseLevels) -> None:
        """Raise StageError unless all recorded runs pass through the noise levels of the first."""
        for shard, conditions in enumerate(self.shards[1:], 1):
            check_alike("data", conditions, recorded_levels(self.context, shard), self.shards[0], first)

    def _left(self, key: str) -> None:
        with unit_of(self.context, self.stage, key) as unit:
            unit.value = [
                {"part": name, **asdict(group)}
                for name, part in self.denoiser.parts.items()
                for group in grouped(skipped_modules(part))
            ]

    def _surveyed(self, calls: list[Call], samples: int) -> tuple[CallSurvey, dict[str, tuple[int, ...]]]:
        """What the first call of every denoiser shows; and, of several, at which steps each is called."""
        parts = self.denoiser.parts
        if len(parts) == 1:
            return self._survey_of(calls[0], self.layers, samples), {}
        seen, steps = list[CallSurvey](), dict[str, tuple[int, ...]]()
        for part in parts:
            own = [call for call in calls if call.part == part]
            if not own:
                raise StageError(f"{part} is never called; ask for more steps in model.call.num_inference_steps")
            layers = {name: layer for name, layer in self.layers.items() if name.startswith(f"{part}.")}
            shown = self._survey_of(own[0], layers, samples)
            seen.append(replace(shown, layers=tuple(replace(layer, component=part) for layer in shown.layers)))
            steps[part] = tuple(sorted({call.step for call in own}))
        together = CallSurvey(
            layers=tuple(layer for one in seen for layer in one.layers),
            unused=tuple(name for one in seen for name in one.unused),
            repeated=tuple(name for one in seen for name in one.repeated),
        )
        return together, steps

    def _survey_of(self, call: Call, layers: Mapping[str, nn.Linear], samples: int) -> CallSurvey:
        """What a call shows, or its first part, if it does not fit whole."""
        parts = self.denoiser.cut(call)
        part, size = parts[0]
        return survey(partial(self.denoiser.run, part), layers, Fraction(samples * size, sum(n for _, n in parts)))

    def _activations(self, key: str) -> None:
        at = read_block_key(key)
        block, shard = at.block, at.batch
        survey = survey_of(self.context)
        steps = step_blocks(self.context, survey.steps)[block]
        layers = {row.name: self.layers[row.name] for row in survey.layers}
        owners = [layer.name for layer in survey.owners()]
        with unit_of(self.context, self.stage, key, self.micro) as unit, torch.no_grad():
            rows_of: dict[str, list[Tensor]] = {}
            peaks: dict[str, list[Tensor]] = {}
            per_step = survey.calls_at(steps.start)
            for call in self._calls(shard, steps):
                count, seed = self._rows_per_call(per_step), (block, shard, call.step)
                with unit.timed("model"):
                    sampled = self._sampled(call, layers, count, seed)
                for name in owners:
                    rows, peak = sampled(name)
                    if not peak.isfinite().all():
                        raise _not_finite(name, call)
                    rows_of.setdefault(name, []).append(rows)
                    peaks.setdefault(name, []).append(peak)
            stacked = {f"rows:{name}": torch.stack(equalize(rows)) for name, rows in rows_of.items()}
            stacked.update({f"absmax:{name}": torch.stack(rows) for name, rows in peaks.items()})
            tensors.write_stacked(
                unit.folder, stacked, {"start": steps.start, "stop": steps.stop, "calls_per_step": per_step}
            )

    def _sampled(
        self, call: Call, layers: Mapping[str, nn.Linear], count: int, seed: tuple[int, ...]
    ) -> Callable[[str], tuple[Tensor, Tensor]]:
        """Input rows and peak of any layer in one call; of a call in parts each gives its share of the rows."""
        parts = self.denoiser.cut(call)
        of, samplers = sum(size for _, size in parts), list[RowSampler]()
        for place, (part, size) in enumerate(parts):
            share = math.ceil(count * size / of)
            samplers.append(RowSampler(layers, share, (*seed, place) if place else seed))
            try:
                self.denoiser.run(part)
            finally:
                samplers[-1].close()

        def of_layer(name: str) -> tuple[Tensor, Tensor]:
            found = [sampler.of(name, layers[name]) for sampler in samplers]
            rows = torch.cat([rows for rows, _ in found])[:count]
            return rows, torch.stack([peak for _, peak in found]).amax(0)

        return of_layer

    def _rows_per_call(self, calls: int) -> int:
        return max(1, self.context.settings[CaptureSettings].rows // calls)


def _not_finite(layer: str, call: Call) -> StageError:
    return StageError(
        f"NaN or infinity in the input of layer {layer} at step {call.step} (timestep {call.timestep:g}); "
        "check the model, or set compute.dtype to float32"
    )
