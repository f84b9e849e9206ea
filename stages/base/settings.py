"""Settings: the base class of every TOML table, and the tables that several stages read."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from adatsq_pipe.storage.fingerprint import Plain

LARGEST_SEED = 2**43 - 1
"""Of a table's seed: each caption's own is 1 000 003 times that and its index more, which has to fit into 63 bits."""
RESERVED = ("prompt", "class_labels", "generator", "output_type", "return_dict")
"""Arguments of a pipeline's call that a run sets itself."""
SEVERAL = "_per_prompt"
"""How arguments end that ask for several pictures, clips or sounds of one prompt. Only the first would be looked at."""
LARGEST_COUNT = {
    "num_inference_steps": 10_000, "height": 65_536, "width": 65_536, "num_frames": 65_536,
    "max_sequence_length": 1_000_000,
}  # fmt: skip
"""Arguments of a pipeline's call that are whole numbers of 1 or more, whatever the pipeline; and the largest."""


LONGEST_KIND = 60
"""Characters of the name of a kind of caption."""


class Settings(BaseModel):
    """A TOML table: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    table: ClassVar[str]
    """Name of the TOML table."""

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: object) -> object:
        """`true` is no number, though Python counts with it."""
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, bool) and key in cls.model_fields and cls.model_fields[key].annotation in (int, float):
                raise ValueError(f"{key} is a number, not {str(value).lower()}")
        return values

    def identity(self) -> dict[str, Plain]:
        """What the bytes of a result depend on, as JSON has it."""
        return self.model_dump(mode="json")


class PromptSettings(Settings):
    """What [data] and [evaluate] have in common: captions, and what comes with each."""

    prompts: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    inputs: tuple[dict[str, Any], ...] = ()
    prompts_file: str = ""
    count: int
    batch: int
    seed: int

    @field_validator("kinds")
    @classmethod
    def _names(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked_kind(kind) for kind in kinds)

    def identity(self) -> dict[str, Plain]:
        """The captions themselves and their inputs: not the file or the count that they came from, nor their kinds, by
        which results are only grouped."""
        plain = super().identity()
        del plain["count"], plain["prompts_file"], plain["kinds"]
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


def checked_kind(kind: object) -> str:
    """The name of a kind of caption, on one line; "" for none. ValueError, in one line, for what is no name."""
    if kind is None:
        return ""
    if isinstance(kind, int) and not isinstance(kind, bool):
        kind = str(kind)
    if not isinstance(kind, str):
        raise ValueError(f'kind is {_short(kind)}, no text; write a word or two, e.g. "hands", or leave it out')
    name = " ".join(unicodedata.normalize("NFC", kind).split())
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ValueError(f"kind is {_short(kind)}, which holds a character that cannot be shown; leave that out")
    if len(name) > LONGEST_KIND:
        raise ValueError(f"kind is {_short(kind)}, {len(name)} characters; write at most {LONGEST_KIND}")
    return name


def _short(value: object) -> str:
    """A value for a message."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= LONGEST_KIND else f"{text[:LONGEST_KIND]}..."


def check_call(call: Mapping[str, object]) -> None:
    """Raise ValueError, in one line, if no pipeline takes these arguments of its call."""
    for name, value in call.items():
        if name in RESERVED:
            raise ValueError(f"{name} is set by the run itself, for every caption; leave it out")
        if name.endswith(SEVERAL) and value not in (1, None):
            raise ValueError(
                f"{name} is {value!r}, but one picture is drawn of every prompt; leave it out, and draw more of each "
                "with evaluate.seeds"
            )
        most = LARGEST_COUNT.get(name)
        if most is None or value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ValueError(f"{name} is {value!r}; write a whole number from 1 to {most}")


Scalar = bool | int | float | str | None


CallValue = Scalar | list[Scalar | list[Scalar]] | dict[str, Scalar]


class ModelSettings(Settings):
    """[model] What is quantized, and how its pipeline is called."""

    table: ClassVar[str] = "model"

    path: str = ""
    """A diffusers pipeline: a local folder, or org/name[@revision] on the hub; empty = the built-in scenes/flux-dev."""
    variant: str = Field(default="", pattern="^[A-Za-z0-9_-]*$")
    """Weights of this variant where components have it, e.g. fp16 or bf16, as from_pretrained's `variant`; empty =
    those of no variant."""
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
        call = {key: None if item == "null" else item for key, item in value.items()}
        check_call(call)
        return call


class DataSettings(PromptSettings):
    """[data] Captions for calibration."""

    table: ClassVar[str] = "data"

    prompts: tuple[str, ...] = ()
    """Calibration captions; empty = the built-in world's training captions, or the captions that ship."""
    kinds: tuple[str, ...] = ()
    """What kind each caption is of, shown before a run; no result depends on it. The file's column `kind` sets it."""
    inputs: tuple[dict[str, Any], ...] = ()
    """What each caption comes with, from a manifest (see prompts_file): `images` by argument, `call`, `seed`."""
    prompts_file: str = ""
    """The same from a file: text with one caption a line, or JSON, JSONL, CSV, TSV or Parquet with a column `prompt`.
    The result depends on its contents, not on its path."""
    count: int = Field(default=32, ge=1, le=100_000)
    """How many captions are built in. Set beside captions of your own, it takes the first so many of them."""
    batch: int = Field(default=8, ge=1)
    """Captions in one forward pass. Float results depend on it. With pictures from a manifest the default is 1: some
    pipelines take the pictures of a batch for one prompt's."""
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    """Seed of the noise of the calibration draws, and of the choice of built-in captions."""


DEVICES = "auto, cpu, cuda or cuda:N"
DTYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"


def is_device(name: str) -> bool:
    """Whether `name` is a torch device that this project computes on, or leaves it to what is there."""
    return re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", name, re.ASCII) is not None


class ComputeSettings(Settings):
    """[compute] What float results depend on besides the method.

    A run's configuration has no `auto` left in it: `pipeline.compute` puts a device and a dtype in its place, before
    anything is identified by them.
    """

    table: ClassVar[str] = "compute"

    device: str = AUTO
    """Torch device of the workers: cpu, cuda or cuda:N; auto = that of the run so far, else cuda where workers have a
    GPU, else cpu."""
    dtype: str = Field(default=AUTO, pattern=f"^({'|'.join((AUTO, *DTYPES))})$")
    """Floating-point type of the model in calibration, search and evaluation: float32, bfloat16 or float16; auto =
    float32 on a CPU, else the one that the transformer's weights are stored in."""
    threads: int = Field(default=1, ge=1, le=1_024)
    """CPU threads of one worker."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not is_device(device):
            raise ValueError(f"must be {DEVICES}")
        return device

    def identity(self) -> dict[str, Plain]:
        """With the library that multiplies float32 on a CPU (`numerics.products`): other results of before stay."""
        plain = super().identity()
        return {**plain, "products": "oneDNN"} if (self.device, self.dtype) == ("cpu", "float32") else plain
