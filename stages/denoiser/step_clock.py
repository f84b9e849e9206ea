"""Steps of a run as its denoiser can tell them apart: by the timestep of the tokens that are denoised."""

from __future__ import annotations

from dataclasses import dataclass, field

from adatsq_pipe.stages.runtime.clock import denoised_timesteps

Span = tuple[float, float]
"""The least and the largest timestep of a call: of its tokens, frames or samples."""


@dataclass
class StepClock:
    """Counts the steps of one run of a pipeline's loop.

    A policy finds the step of a call by its timestep. So what the scheduler counts as two steps of one timestep, as a
    Heun scheduler does, is one step here.
    """

    spans: list[Span] = field(default_factory=list)
    """Of every call so far, in order."""
    step: int = 0
    """Of the last call."""
    scheduler_step: int = 0

    def call(self, scheduler_step: int, span: Span) -> int:
        """The step of the next call, made after so many steps of the scheduler."""
        self.spans.append(span)
        if scheduler_step != self.scheduler_step:
            self.scheduler_step = scheduler_step
            *_, before, now = denoised_timesteps([self.spans[0], *self.spans[-2:]])
            self.step += before != now
        return self.step

    @property
    def timestep(self) -> float:
        """Of the last call; of the first calls of a run whose timesteps rise it is that of tokens that stand still."""
        return denoised_timesteps([self.spans[0], self.spans[-1]])[-1]

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Of every call of the run, once it has ended."""
        return tuple(denoised_timesteps(self.spans)) if self.spans else ()
