"""Outlook: everything that estimates rest on: the model, its settings, the size of its calls, and its survey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.estimate.denoising import Denoising, denoising_of
from adatsq_pipe.pipeline.estimate.geometry import Geometry, geometry_of
from adatsq_pipe.pipeline.estimate.subject import Subject, read_subject
from adatsq_pipe.stages.architecture.memory import BYTES
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings, DataSettings, ModelSettings
from adatsq_pipe.stages.base.survey import LayerInfo, Survey
from adatsq_pipe.stages.base.units import shards
from adatsq_pipe.stages.calibration.hessian import HessianSettings
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.methods._recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a run would be of."""

    subject: Subject
    settings: RunSettings
    geometry: Geometry
    denoising: Mapping[str, Denoising]
    """Of every denoiser, for `data.batch` captions."""

    @property
    def size(self) -> int:
        """Bytes of a number in the compute dtype."""
        return BYTES[self.settings[ComputeSettings].dtype]

    @property
    def batches(self) -> list[int]:
        """Captions of every calibration batch."""
        data = self.settings[DataSettings]
        return [len(part) for part in shards(len(data.prompts), data.batch)]

    @property
    def captions(self) -> int:
        """Calibration captions."""
        return sum(self.batches)

    @property
    def draws(self) -> list[int]:
        """Held-out pictures of every batch."""
        held = self.settings[EvaluateSettings]
        return [len(part) for part in shards(len(held.prompts) * held.seeds, held.batch)]

    @cached_property
    def survey(self) -> Survey:
        """The survey that a capture would find."""
        parts, steps = self.denoising, self.geometry.steps
        several = len(parts) > 1
        order, first = dict[str, tuple[int, ...]](), 0
        for name in parts if several else ():
            own = self.geometry.steps_of[name]
            order[name] = tuple(range(first, first + own))
            first += own
        return Survey(
            layers=tuple(row for name, one in parts.items() for row in _rows(one, name if several else "")),
            unused=tuple(row for one in parts.values() for row in one.survey.unused),
            repeated=tuple(row for one in parts.values() for row in one.survey.repeated),
            step_of_call=tuple(step for step in range(steps) for _ in range(self.geometry.calls_per_step)),
            timesteps=tuple(float(steps - step) for step in range(steps)),
            parameters=sum(one.parameters for one in parts.values()),
            steps_of_component=order,
        )

    def steps_of(self, part: str) -> int:
        """Steps at which a denoiser is called."""
        return self.geometry.steps_of.get(part, self.geometry.steps)

    def calls_of(self, part: str) -> int:
        """Calls of a denoiser in one run of the pipeline."""
        return self.steps_of(part) * self.geometry.calls_per_step

    @property
    def weights(self) -> int:
        """Bytes of all models of the pipeline in the compute dtype."""
        return self.size * (self.survey.parameters + sum(self.subject.parameters.values()))

    @property
    def recipe(self) -> Recipe:
        return self.settings[Recipe]

    @cached_property
    def grams(self) -> Mapping[str, int]:
        """Gram matrices of every input, by the layer that owns it: one, or where timesteps have weights one for each
        layer that shares the input."""
        weighted = self.settings[HessianSettings]
        apart = self.recipe.temporal and weighted.temporal and weighted.effective_steps < 1
        found: dict[str, int] = {}
        for row in self.survey.layers:
            found[row.input_of] = found.get(row.input_of, 0) + 1 if apart else 1
        return found

    @property
    def assumed(self) -> list[str]:
        """Everything that was taken for granted, in sentences."""
        found = [*self.subject.assumed, *self.geometry.assumed]
        found += [line for one in self.denoising.values() for line in one.assumed]
        return list(dict.fromkeys(found))


def _rows(one: Denoising, part: str) -> Sequence[LayerInfo]:
    """A denoiser's layers; of several their names begin with the part, as those of a capture do."""
    if not part:
        return one.survey.layers
    return [
        replace(row, name=f"{part}.{row.name}", input_of=f"{part}.{row.input_of}", component=part)
        for row in one.survey.layers
    ]


def outlook_of(config: RunConfig, subject: Subject | None = None) -> Outlook:
    """The outlook of a run with these settings. Raises ConfigError, NotTaken."""
    settings, compute = config.settings, config.settings[ComputeSettings]
    subject = subject or read_subject(config.model, dtype_size=BYTES[compute.dtype])
    geometry = geometry_of(subject, settings[ModelSettings].call)
    data = settings[DataSettings]
    made: dict[str, Denoising] = {}
    alike: dict[str, Denoising] = {}
    for part, values in subject.denoisers.items():
        key = repr(sorted(values.items(), key=lambda item: item[0]))
        if key not in alike:
            alike[key] = denoising_of(
                values, geometry, captions=min(data.batch, len(data.prompts)), dtype=compute.dtype,
                recipe=settings[Recipe], where=subject.path / part,
            )  # fmt: skip
        made[part] = alike[key]
    return Outlook(subject=subject, settings=settings, geometry=geometry, denoising=made)
