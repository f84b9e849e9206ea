"""Settings: the base class of every TOML table, and the tables that several stages read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from adatsq_pipe.storage.fingerprint import Plain


class Settings(BaseModel):
    """A TOML table: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    table: ClassVar[str]
    """Name of the TOML table."""

    def identity(self) -> dict[str, Plain]:
        """What the bytes of a result depend on, as JSON has it."""
        return self.model_dump(mode="json")


class PromptSettings(Settings):
    """What [data] and [evaluate] have in common: captions, and what comes with each."""

    prompts: tuple[str, ...] = ()
    inputs: tuple[dict[str, Any], ...] = ()
    prompts_file: str = ""
    count: int
    batch: int
    seed: int

    def identity(self) -> dict[str, Plain]:
        """The captions themselves and their inputs, not the file or the count that they came from."""
        plain = super().identity()
        del plain["count"], plain["prompts_file"]
        if not self.inputs:
            del plain["inputs"]
        return plain


SettingsT = TypeVar("SettingsT", bound=Settings)


def first_error(error: ValidationError, table: str) -> str:
    """What is wrong with the first key that is, in one line: its name, the reason, the value."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in (table, *first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" + ("" if isinstance(first["input"], Mapping) else f" (got {first['input']!r})")


Scalar = bool | int | float | str | None


CallValue = Scalar | list[Scalar | list[Scalar]] | dict[str, Scalar]


class ModelSettings(Settings):
    """[model] What is quantized, and how its pipeline is called."""

    table: ClassVar[str] = "model"

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
    def _nothing(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return {key: None if item == "null" else item for key, item in value.items()}


class DataSettings(PromptSettings):
    """[data] Captions for calibration."""

    table: ClassVar[str] = "data"

    prompts: tuple[str, ...] = ()
    """Calibration captions; empty = the built-in world's training captions."""
    inputs: tuple[dict[str, Any], ...] = ()
    """What each caption comes with, from a manifest (see prompts_file): `images` by argument, `call`, `seed`."""
    prompts_file: str = ""
    """The same from a file: text with one caption a line, or JSONL or Parquet with a column `prompt`. The result
    depends on its contents, not on its path."""
    count: int = Field(default=32, ge=1)
    """How many captions, when they come from the built-in world."""
    batch: int = Field(default=8, ge=1)
    """Captions in one forward pass. Float results depend on it. With pictures from a manifest the default is 1: some
    pipelines take the pictures of a batch for one prompt's."""
    seed: int = 0
    """Seed of the noise of the calibration draws, and of the choice of built-in captions."""


class ComputeSettings(Settings):
    """[compute] What float results depend on besides the method."""

    table: ClassVar[str] = "compute"

    device: str = "cpu"
    """Torch device of the workers: cpu, cuda or cuda:N."""
    dtype: str = Field(default="float32", pattern="^(float32|bfloat16|float16)$")
    """Floating-point type of the model in calibration, search and evaluation."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of one worker."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
            raise ValueError("must be cpu, cuda or cuda:N")
        return device
