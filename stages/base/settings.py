"""Settings: the base class of every TOML table, and the tables that several stages read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    pass


class Settings(BaseModel):
    """A TOML table: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SettingsT = TypeVar("SettingsT", bound=Settings)


Scalar = bool | int | float | str | None


CallValue = Scalar | list[Scalar | list[Scalar]] | dict[str, Scalar]


class ModelSettings(Settings):
    """[model] What is quantized, and how its pipeline is called."""

    path: str = ""
    """A local diffusers pipeline folder; empty = the built-in scenes/flux-dev."""
    call: dict[str, CallValue] = {}
    """Keyword arguments of the pipeline call, e.g. height, width, num_inference_steps, guidance_scale. Text "null" is
    Python's None, for which TOML has no word."""
    world: Literal["", "scenes", "classes", "motions"] = ""
    """What the model draws, if a program can score it: captioned "scenes", "classes" of things, or "motions" in clips
    (the folder's sampling.json says it); else empty."""

    @field_validator("call", mode="before")
    @classmethod
    def _nothing(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        return {key: None if value == "null" else value for key, value in given.items()}


class DataSettings(Settings):
    """[data] Captions for calibration."""

    prompts: tuple[str, ...] = ()
    """Calibration captions; empty = the built-in world's training captions."""
    inputs: tuple[dict[str, Any], ...] = ()
    """What each caption comes with, from a manifest (see prompts_file): `images` by argument, `call`, `seed`."""
    prompts_file: str = ""
    """The same from a file: text with one to a line, JSONL or Parquet with a column prompt. Its contents bear identity,
    its place does not."""
    count: int = Field(default=32, ge=1)
    """How many captions, when they come from the built-in world."""
    batch: int = Field(default=8, ge=1)
    """Captions per forward pass. Float results depend on it, so it bears identity. With pictures from a manifest it is
    1 unless it is set: some pipelines take the pictures of a batch for one prompt's."""
    seed: int = 0


class ComputeSettings(Settings):
    """[compute] What float results depend on besides the method."""

    device: str = "cpu"
    """Torch device of the workers: cpu or cuda."""
    dtype: str = Field(default="float32", pattern="^(float32|bfloat16|float16)$")
    threads: int = Field(default=1, ge=1)
    """CPU threads of one worker."""
