"""Which step of the policy a denoiser call belongs to, read from the denoiser's own timestep argument."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, MethodType

import torch
from torch import Tensor

from adatsq_pipe.stages.names import TIMESTEPS


def timestep_argument(forward: Callable[..., object], name: str = "") -> tuple[str, int] | None:
    """Name and position of the timestep among the parameters of `forward`, or None.

    Looks for `name`, or without it for the names in use (`TIMESTEPS`): Flux and Wan say `timestep`, Z-Image `t`.
    """
    parameters = _parameters(forward)
    candidates = (name,) if name else TIMESTEPS
    return next(((name, parameters.index(name)) for name in candidates if name in parameters), None)


def _parameters(forward: Callable[..., object]) -> list[str]:
    """The names of the parameters of `forward`, of a method looked up once: signatures take long to read."""
    if isinstance(forward, MethodType) and isinstance(forward.__func__, FunctionType):
        return _of_method(forward.__func__)
    return list(inspect.signature(forward).parameters)


@functools.cache
def _of_method(function: FunctionType) -> list[str]:
    return list(inspect.signature(MethodType(function, object())).parameters)


def timestep_of(
    forward: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object], name: str = ""
) -> Tensor:
    """The timestep of a call of `forward`: float32 [n] on the CPU, in the denoiser's own unit.

    If no parameter has the `name` (or a name in use), it is the first number, or vector of numbers, after the sample.
    Raises TypeError if the call has none.
    """
    argument = timestep_argument(forward, name)
    if argument is not None:
        key, index = argument
        value = kwargs.get(key, args[index] if index < len(args) else None)
    else:
        value = next((value for value in args[1:] if _is_timestep(value)), None)
    if value is None:
        names = name or ", ".join(TIMESTEPS)
        raise TypeError(f"the denoiser's call has none of the arguments {names}; no policy can follow")
    return torch.as_tensor(value).detach().float().reshape(-1).cpu()


def _is_timestep(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.dim() <= 1)


def monotonic(timesteps: Sequence[float]) -> bool:
    """Whether the timesteps of a run's calls never rise, or never fall: then a timestep identifies its step."""
    pairs = list(itertools.pairwise(timesteps))
    return all(a >= b for a, b in pairs) or all(a <= b for a, b in pairs)


def denoised_timesteps(spans: Sequence[tuple[float, float]]) -> list[float]:
    """The timestep of the tokens that are denoised, of every call of a run; `spans` has its (least, largest) timesteps.

    A call may have a timestep for each sample, frame or token, and those of a given frame stand still, where nothing
    is left to denoise. So the noisiest value counts: the largest of a run whose timesteps fall, the least of one whose
    timesteps rise.
    """
    (least, largest), (last_least, last_largest) = spans[0], spans[-1]
    rises = (last_least - least) + (last_largest - largest) > 0
    return [span[0 if rises else 1] for span in spans]


def nearest_step(timestep: Tensor, calibrated_T: Tensor) -> int:
    """The step of a call with the values `timestep` [n], among the calibrated timesteps of a run, in its order.

    Each value has the step of the calibrated timestep nearest to it, of two equally near the earlier one. The call has
    the earliest of these: that of its noisiest tokens (see `denoised_timesteps`).
    """
    return int((timestep.reshape(-1, 1) - calibrated_T.reshape(1, -1)).abs().argmin(1).min())
