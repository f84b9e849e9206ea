"""Tiny pipelines that need more than a prompt: a picture to move, a picture to follow, a picture to change."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import (
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    FluxControlPipeline,
    FluxImg2ImgPipeline,
    FluxTransformer2DModel,
)

from tests.tiny import flux
from tests.zoo.parts import Built
from tests.zoo.videos import cogvideox


def _widened(kind: type, pipe: Any, transformer: type, **changed: int) -> Any:
    """A pipeline of `kind` from the parts of `pipe`, its transformer made anew with other channels."""
    parts = {name: part for name, part in pipe.components.items() if name in inspect.signature(kind).parameters}
    config = {key: value for key, value in pipe.transformer.config.items() if not key.startswith("_")}
    return kind(**{**parts, "transformer": transformer(**{**config, **changed})})


def moved() -> Built:
    pipe, call = cogvideox()
    return _widened(CogVideoXImageToVideoPipeline, pipe, CogVideoXTransformer3DModel, in_channels=8), call


def followed() -> Built:
    pipe, call = flux()
    return _widened(FluxControlPipeline, pipe, FluxTransformer2DModel, in_channels=32, out_channels=16), call


def changed() -> Built:
    pipe, call = flux()
    return FluxImg2ImgPipeline(**pipe.components), call


BUILDERS = {"moved": (moved, "image"), "followed": (followed, "control_image"), "changed": (changed, "image")}
