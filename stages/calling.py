"""Calling a pipeline: what it may raise, what it gives back, what is said when it does not run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

OF_PIPELINES = (
    ValueError, TypeError, RuntimeError, AttributeError, LookupError, NotImplementedError, NameError, ImportError,
    AssertionError, ArithmeticError,
)  # fmt: skip
"""What pipelines raise where they are not given what they want, or lack a package."""


def decoded(vae: Any, decode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the autoencoder makes of latents; Allegro's can do so in tiles only, which it has to be told."""
    try:
        return decode(*args, **kwargs)
    except NotImplementedError:
        if getattr(vae, "use_tiling", True):
            raise
        vae.enable_tiling()
        return decode(*args, **kwargs)


def told(arguments: dict[str, Any]) -> str:
    """The arguments of a call, for a message."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items() if name != "generator")


def advice(prompts: int) -> str:
    """What to try where a call with so many prompts does not run."""
    alone = ", or one prompt at a time (data.batch = 1, evaluate.batch = 1)" if prompts > 1 else ""
    return f"give it what it takes in [model.call]{alone}"


def plain(value: Any) -> bool:
    """Whether a value is text, numbers, devices and dtypes throughout: known by how it is written."""
    if isinstance(value, dict):
        return all(map(plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or isinstance(value, str | int | float | torch.device | torch.dtype)


def pictures_of(result: Any) -> Tensor:
    """What a pipeline returned, as a tensor [samples, ..., height, width, channels]."""
    first = next(iter(result.values()))
    return first if isinstance(first, Tensor) else torch.from_numpy(np.asarray(first))
