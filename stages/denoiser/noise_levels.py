"""The noise levels that a run passes through, and whether two runs pass through the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.pipeline_call import check_timesteps
from adatsq_pipe.stages.runtime.clock import nearest_step

SHOWN = 4
"""Timesteps of a run that a message names."""


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """The step and the timestep of every denoiser call of a run, in order."""

    steps: tuple[int, ...]
    timesteps: tuple[float, ...]

    @classmethod
    def of(cls, calls: Sequence[Call]) -> NoiseLevels:
        """Those of a rehearsed run. Raises StageError if no policy can follow its timesteps."""
        found = cls(steps=tuple(call.step for call in calls), timesteps=tuple(call.timestep for call in calls))
        check_timesteps(found.timesteps)
        return found

    def noisiest(self) -> tuple[float, ...]:
        """The timestep of every step: that of its noisiest call."""
        most = max if self.timesteps[0] >= self.timesteps[-1] else min
        pairs = list(zip(self.timesteps, self.steps, strict=True))
        return tuple(most(t for t, own in pairs if own == step) for step in range(self.steps[-1] + 1))

    def are_those_of(self, other: NoiseLevels) -> bool:
        """Whether the steps of this run mean those of the `other`: equal in number, each nearest to its own there."""
        if self.steps != other.steps:
            return False
        levels = dict(zip(other.steps, other.timesteps, strict=True))
        calibrated_T = torch.tensor([levels[step] for step in sorted(levels)])
        nearest = [nearest_step(torch.tensor([timestep]), calibrated_T) for timestep in self.timesteps]
        return tuple(nearest) == self.steps

    def text(self) -> str:
        """For a message: how many steps, and the first timesteps."""
        levels = list(dict(zip(self.steps, self.timesteps, strict=True)).values())
        shown = [f"{timestep:g}" for timestep in levels[:SHOWN]] + ["..."] * (len(levels) > SHOWN)
        return f"{len(levels)} step{'s' * (len(levels) > 1)} (timesteps {', '.join(shown)})"


def form_of(conditions: Conditions) -> tuple[object, ...]:
    """What of a batch may change how its run goes: the number of prompts, and their arguments, of pictures the size."""
    rows = tuple(tuple(sorted((name, _form(value)) for name, value in row.items())) for row in conditions.inputs)
    return (len(conditions.prompts), rows)


def _form(value: Any) -> str:
    if isinstance(value, Image):
        return f"a picture of {value.width} x {value.height}"
    if isinstance(value, list) and value and isinstance(value[0], Image):
        return f"[{', '.join(map(_form, value))}]"
    return repr(value)


def check_alike(table: str, one: Conditions, levels: NoiseLevels, first: Conditions, first_levels: NoiseLevels) -> None:
    """Raise StageError, which names the difference, if the run of `one` passes through other levels than the first."""
    if levels.are_those_of(first_levels):
        return
    raise StageError(
        f"the prompts of {table} are denoised at different noise levels: {first.prompts[0]!r} in "
        f"{first_levels.text()}, {one.prompts[0]!r} in {levels.text()}{_difference(one, first)}. Sensitivities and "
        "bits belong to a step, so its noise must be the same for all prompts: give every row of "
        f"{table}.prompts_file the same arguments and sizes of pictures, or quantize in a run directory for each"
    )


def _difference(one: Conditions, first: Conditions) -> str:
    if not one.inputs or not first.inputs:
        return ""
    mine, others = one.inputs[0], first.inputs[0]
    named = [name for name in sorted({*mine, *others}) if _form(mine.get(name)) != _form(others.get(name))]
    parts = [f"{name} is {_form(others.get(name))} there and {_form(mine.get(name))} here" for name in named]
    return f"; {', '.join(parts)}" if parts else ""
