"""Calling a pipeline: its steps, what it may raise, what it gives back, what is said when it does not run."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.runtime.clock import monotonic

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


@contextmanager
def on_scheduler_step(scheduler: Any, moved: Callable[[], None]) -> Iterator[None]:
    """Have `moved` called after every step of the scheduler and of copies that are made of it meanwhile.

    Its class is told, for a while: copies must be heard, and pipelines ask for exactly that class.
    """
    kind = type(scheduler)
    real, own = kind.step, "step" in vars(kind)

    @functools.wraps(real)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = real(self, *args, **kwargs)
        moved()
        return result

    kind.step = step
    try:
        yield
    finally:
        if own:
            kind.step = real
        else:
            del kind.step


def told(arguments: dict[str, Any]) -> str:
    """The arguments of a call, for a message."""

    def shown(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], Image):
            return f"{len(value)} pictures"
        return f"a picture of {value.width} x {value.height}" if isinstance(value, Image) else repr(value)

    return ", ".join(f"{name}={shown(value)}" for name, value in arguments.items() if name != "generator")


def lacking(error: Exception, pipeline: object) -> str:
    """The package that the pipeline's file imports only where there is one, and whose absence `error` tells; or ""."""
    name = error.name if isinstance(error, NameError) and error.name else ""
    file = getattr(sys.modules.get(type(pipeline).__module__), "__file__", None)
    if not name or not file:
        return ""
    return name if re.search(rf"^\s+import {re.escape(name)}$", Path(file).read_text(), re.MULTILINE) else ""


def advice(error: Exception, pipeline: object, prompts: int) -> str:
    """What to try where a call with so many prompts ends in `error`."""
    if package := lacking(error, pipeline):
        return f"it wants the package {package}, which is not installed: pip install {package}"
    alone = ", or one prompt at a time (data.batch = 1, evaluate.batch = 1)" if prompts > 1 else ""
    return f"give it what it takes in [model.call]{alone}"


def plain(value: Any) -> bool:
    """Whether a value is text, numbers, devices and dtypes throughout: known by how it is written."""
    if isinstance(value, dict):
        return all(map(plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or isinstance(value, str | int | float | torch.device | torch.dtype)


def pictures_of(result: Any, samples: int = 0) -> Tensor:
    """What a pipeline returned, as a tensor [samples, ..., height, width, channels]; Cosmos 3 gives one clip's frames
    where one sample was asked for."""
    first = next(iter(result.values()))
    found: Tensor = first if isinstance(first, Tensor) else torch.from_numpy(np.asarray(first))
    return found.unsqueeze(0) if samples == 1 and found.dim() == 4 and len(found) > 1 else found


def check_timesteps(timesteps: Sequence[float]) -> None:
    """Raise StageError where the calls of a run go up and down in noise, as where frames are drawn in turns."""
    if not monotonic(timesteps):
        raise StageError(
            f"the denoiser's timestep goes up and down over a run ({', '.join(f'{t:g}' for t in timesteps)}): it does "
            "not tell the steps apart, so no timestep policy can follow it"
        )


def together(decoded: list[Tensor], samples: int) -> Tensor:
    """The latents that were decoded one after the other, as one: samples, or frames [samples, channels, frames, ...].

    Raises StageError where they are neither.
    """
    if len(decoded) == 1:
        return decoded[0]
    alike = len({part.shape[1:] for part in decoded}) == 1
    if alike and sum(map(len, decoded)) == samples:
        return torch.cat(decoded)
    if all(part.dim() == 5 and part.shape[:2] == (samples, decoded[0].shape[1]) for part in decoded):
        return torch.cat(decoded, 2)
    shapes = sorted({tuple(part.shape) for part in decoded})
    raise StageError(f"the pipeline decodes latents of several shapes, {shapes}, which cannot be put together")
