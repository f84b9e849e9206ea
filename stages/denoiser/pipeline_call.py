"""Calling a diffusers pipeline: scheduler steps, prompt encoding, decoded latents, and errors with advice."""

from __future__ import annotations

import functools
import inspect
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.denoiser.outputs import Output
from adatsq_pipe.stages.runtime.clock import monotonic

P = ParamSpec("P")
T = TypeVar("T")


class Autoencoder(Protocol):
    """What this package uses of the autoencoders of diffusers."""

    decode: Callable[..., Output]

    def enable_tiling(self) -> None: ...


def decode_latents(vae: Autoencoder, decode: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`decode(*args, **kwargs)`; an autoencoder that only decodes tiles (Allegro's) is switched to tiling first."""
    try:
        return decode(*args, **kwargs)
    except NotImplementedError:
        if getattr(vae, "use_tiling", True):
            raise
        vae.enable_tiling()
        return decode(*args, **kwargs)


@contextmanager
def on_scheduler_step(scheduler: Any, callback: Callable[[], None]) -> Iterator[None]:
    """Inside, `callback` runs after every step of the scheduler, and of copies that the pipeline makes of it.

    The scheduler's class is patched: copies share it, and pipelines check for exactly that class.
    """
    scheduler_class = type(scheduler)
    real, defined_here = scheduler_class.step, "step" in vars(scheduler_class)

    @functools.wraps(real)
    def step(self: object, *args: object, **kwargs: object) -> object:
        result = real(self, *args, **kwargs)
        callback()
        return result

    scheduler_class.step = step
    try:
        yield
    finally:
        if defined_here:
            scheduler_class.step = real
        else:
            del scheduler_class.step


def cache_prompt_encoding(pipe: Any) -> None:
    """Have `pipe.encode_prompt`, if there is one, encode each set of plain arguments once.

    What takes its place knows the pipeline weakly: a pipeline that is let go of is gone at once, with its weights.
    """
    real = getattr(pipe, "encode_prompt", None)
    if real is None:
        return
    method: Callable[[], Any] = weakref.WeakMethod(real) if inspect.ismethod(real) else lambda: real
    encoded: dict[str, object] = {}

    @functools.wraps(real)
    def encode_prompt(*args: object, **kwargs: object) -> object:
        encode = method()  # the pipeline holds this function, so it is there
        if not is_plain([args, kwargs]):
            return encode(*args, **kwargs)
        key = repr((args, sorted(kwargs.items())))
        if key not in encoded:
            encoded[key] = encode(*args, **kwargs)
        return encoded[key]

    if inspect.ismethod(real):
        vars(encode_prompt)["__signature__"] = inspect.signature(real)
        del vars(encode_prompt)["__wrapped__"]  # the method, which holds the pipeline
    pipe.encode_prompt = encode_prompt


LONGEST = 120
"""Characters of an argument that a message shows."""


def describe(arguments: Mapping[str, object]) -> str:
    """The arguments of a call, for a message: pictures by their size, long values cut, generators left out."""

    def text(value: object) -> str:
        if isinstance(value, list) and value and isinstance(value[0], Image):
            return f"{len(value)} pictures"
        if isinstance(value, Image):
            return f"a picture of {value.width} x {value.height}"
        return shown if len(shown := repr(value)) <= LONGEST else f"{shown[:LONGEST]}..."

    return ", ".join(f"{name}={text(value)}" for name, value in arguments.items() if name != "generator")


def missing_package(error: Exception, pipeline: object) -> str:
    """The optional package whose absence caused `error`, found by the guarded imports of the pipeline's file; or ""."""
    name = error.name if isinstance(error, NameError) and error.name else ""
    file = getattr(sys.modules.get(type(pipeline).__module__), "__file__", None)
    if not name or not file:
        return ""
    return name if re.search(rf"^\s+import {re.escape(name)}$", Path(file).read_text("utf-8"), re.MULTILINE) else ""


def advice(error: Exception, pipeline: object, prompts: int) -> str:
    """What to try after a call with `prompts` prompts has failed with `error`."""
    if package := missing_package(error, pipeline):
        return f"it needs the package {package}, which is not installed: pip install {package}"
    alone = ", or use one prompt at a time (data.batch = 1, evaluate.batch = 1)" if prompts > 1 else ""
    return f"set the arguments that it needs in [model.call]{alone}"


def is_plain(value: object) -> bool:
    """Whether a value holds only text, numbers, devices and dtypes, so that its repr identifies it."""
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float | torch.device | torch.dtype)


def pictures_of(result: Mapping[str, Tensor | npt.ArrayLike], samples: int = 0) -> Tensor:
    """A pipeline's result as a tensor [samples, ..., height, width, channels].

    Cosmos 3 returns the frames of a clip without the sample dimension; with `samples` = 1 it is added.
    """
    first = next(iter(result.values()))
    pictures: Tensor = first if isinstance(first, Tensor) else torch.from_numpy(np.asarray(first))
    return pictures.unsqueeze(0) if samples == 1 and pictures.dim() == 4 and len(pictures) > 1 else pictures


def check_timesteps(timesteps: Sequence[float]) -> None:
    """Raise StageError if a run has no timesteps, or if they go up and down, as where frames are denoised in turns."""
    if not timesteps:
        raise StageError(
            "the pipeline draws without one call of its denoiser: ask for more steps in model.call.num_inference_steps "
            "(or for a higher strength)"
        )
    if not monotonic(timesteps):
        raise StageError(
            f"the denoiser's timestep goes up and down over a run ({', '.join(f'{t:g}' for t in timesteps)}): it does "
            "not identify the step, so no timestep policy can follow it"
        )


def join_latents(latents: list[Tensor], samples: int) -> Tensor:
    """Latents that were decoded one after the other, joined: along samples, or along frames of
    [samples, channels, frames, height, width].

    Raises StageError if their shapes allow neither.
    """
    if len(latents) == 1:
        return latents[0]
    alike = len({part.shape[1:] for part in latents}) == 1
    if alike and sum(map(len, latents)) == samples:
        return torch.cat(latents)
    if all(part.dim() == 5 and part.shape[:2] == (samples, latents[0].shape[1]) for part in latents):
        return torch.cat(latents, 2)
    shapes = sorted({tuple(part.shape) for part in latents})
    raise StageError(f"the pipeline decodes latents of several shapes, {shapes}, which cannot be joined")


def undecorated_call(pipe: Any) -> Callable[..., Any]:
    """The pipeline's `__call__` without `torch.no_grad` around it, bound to `pipe`."""
    bound: Callable[..., Any] = inspect.unwrap(type(pipe).__call__).__get__(pipe)
    return bound


class ArraysOfGraphs(TorchFunctionMode):
    """Inside, tensors with an autograd graph can be turned into arrays, which have none. `last` is the last of them."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> object:
        if func is Tensor.numpy and args[0].requires_grad:
            self.last = args[0]
            args = (args[0].detach(), *args[1:])
        return func(*args, **(kwargs or {}))
