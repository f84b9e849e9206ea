"""Which step of the policy a denoiser call belongs to, read from the denoiser's own timestep argument."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adatsq_pipe.stages.names import TIMESTEPS


def timestep_argument(forward: Callable[..., Any], told: str = "") -> tuple[str, int] | None:
    """Name and position of the timestep among the parameters of `forward`; None if no name says it.

    Flux and Wan name it `timestep`, Z-Image `t`; `told` is a name that none would guess.
    """
    names = list(inspect.signature(forward).parameters)
    return next(((name, names.index(name)) for name in ((told,) if told else TIMESTEPS) if name in names), None)


def timestep_of(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], told: str = "") -> Tensor:
    """The timestep argument of a call of `forward` (named `told`, if that is said), float32 `[n]`, in the denoiser's
    own unit.

    Where no parameter has its name it is the first number, or vector of numbers, after the sample. Raises TypeError if
    there is none.
    """
    found = timestep_argument(forward, told)
    if found is not None:
        name, index = found
        value = kwargs.get(name, args[index] if index < len(args) else None)
    else:
        value = next((value for value in args[1:] if _is_level(value)), None)
    if value is None:
        names = told or ", ".join(TIMESTEPS)
        raise TypeError(f"the denoiser's call has none of the arguments {names}; no policy can follow")
    return torch.as_tensor(value).detach().float().reshape(-1).cpu()


def _is_level(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.dim() <= 1)


def monotonic(timesteps: Sequence[float]) -> bool:
    """Whether the calls of a run only fall, or only rise, in noise: then a noise level says the step."""
    pairs = list(itertools.pairwise(timesteps))
    return all(a >= b for a, b in pairs) or all(a <= b for a, b in pairs)


def nearest_step(timestep: Tensor, calibrated_T: Tensor) -> list[int]:
    """Index of the calibrated noise level nearest to each value of `timestep`, without repeats, rising."""
    nearest = (timestep.reshape(-1, 1) - calibrated_T.reshape(1, -1)).abs().argmin(1)
    return sorted(set(nearest.tolist()))
