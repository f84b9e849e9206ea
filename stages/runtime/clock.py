"""Which step of the policy a denoiser call belongs to, read from the denoiser's own timestep argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_NAMES = ("timestep", "timesteps", "t")


def timestep_of(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The timestep argument of a call of `forward`, float32 `[n]`, in the denoiser's own unit.

    Flux and Wan name it `timestep`, Z-Image `t`. Raises TypeError if there is none.
    """
    names = list(inspect.signature(forward).parameters)
    for name in _NAMES:
        if name in names:
            index = names.index(name)
            value = kwargs.get(name, args[index] if index < len(args) else None)
            if value is not None:
                return torch.as_tensor(value).detach().float().reshape(-1).cpu()
    raise TypeError(f"the denoiser's call has none of the arguments {', '.join(_NAMES)}; no timestep policy can follow")


def nearest_step(timestep: Tensor, calibrated_T: Tensor) -> list[int]:
    """Index of the calibrated noise level nearest to each value of `timestep`, without repeats, rising."""
    nearest = (timestep.reshape(-1, 1) - calibrated_T.reshape(1, -1)).abs().argmin(1)
    return sorted(set(nearest.tolist()))
