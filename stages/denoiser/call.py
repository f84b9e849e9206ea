"""A denoiser's calls: what goes in, what may look on, and a run's outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor

from adatsq_pipe.stages.denoiser.outputs import Output


@dataclass(frozen=True, kw_only=True)
class Call:
    """Inputs of one denoiser call, the step it belongs to, and the timestep, in the denoiser's unit, of the tokens that
    are denoised."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    step: int
    timestep: float
    part: str = "transformer"
    """The pipeline's component that is called."""


Answer = Callable[[Call], Output]
"""What the pipeline gets in place of the denoiser's output."""


@dataclass(frozen=True, kw_only=True)
class CallPart:
    """A part of a call's samples that goes through the denoiser at once: all, unless memory has run out."""

    call: Call
    """Of all samples."""
    place: int
    """Among the call's parts, from 0."""
    share: Fraction
    """Of the call's samples."""


Around = Callable[[CallPart, Callable[[], Output]], Output]
"""Makes a forward pass, which is its second argument, and returns the output; it may look on meanwhile."""


def bare_pass(part: CallPart, forward: Callable[[], Output]) -> Output:
    return forward()


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A recorded run: outputs by call, their steps and timesteps, and the latents that the autoencoder received."""

    outputs: tuple[Output, ...]
    steps: tuple[int, ...]
    timesteps: tuple[float, ...]
    latents: Tensor
    pictures: Any = None
