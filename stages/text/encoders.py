"""Which text encoders a pipeline has, and in which parts they are quantized. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from adatsq_pipe.stages.architecture.support import components_taken
from adatsq_pipe.stages.base.errors import NotTaken
from adatsq_pipe.stages.base.settings import Settings
from adatsq_pipe.storage.checkpoint import find_pipeline, tensor_sizes
from adatsq_pipe.storage.model_files import components
from adatsq_pipe.storage.model_index import component_config

WHOLE = 16
"""Bits of a text encoder that stays as it is."""
SHARD = 2**28
"""Numbers of a unit's tensors at most (a larger tensor has a unit of its own): 1 GiB of them in float32."""
PREFIX = "text_encoder"


class TextEncoderSettings(Settings):
    """[text_encoder] Weights of the pipeline's text encoders."""

    table: ClassVar[str] = "text_encoder"

    bits: Literal[4, 8, 16] = 16
    """Bits of the weights of linear layers in the blocks of all text encoders; the table of tokens and what stands
    behind the blocks has 8. 16 = the encoders stay as they are."""

    @property
    def on(self) -> bool:
        """Whether text encoders are quantized."""
        return self.bits != WHOLE


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A text encoder of a pipeline."""

    name: str
    """The component."""
    kind: str
    """Its class."""
    left: str
    """Why it is not quantized; "" if it can be."""


def encoders_of(folder: Path) -> list[Encoder]:
    """The text encoders that the pipeline in `folder` loads: components that are called so."""
    index = find_pipeline(folder)
    taken, found = components_taken(str(index.get("_class_name", ""))), list[Encoder]()
    for name, component in sorted(components(folder).items()):
        if not name.startswith(PREFIX) or "/" in name or (taken is not None and name not in taken):
            continue
        if not component.has_weights:
            continue
        library, kind = index[name]
        found.append(Encoder(name=name, kind=str(kind), left=_refusal(folder, name, str(library))))
    return found


def _refusal(folder: Path, name: str, library: str) -> str:
    if library != "transformers":
        return f"its class is of {library}, not of transformers"
    config = component_config(folder, name)
    if config.get("quantization_config") is not None:
        how = config["quantization_config"]
        return f"it is quantized already ({how.get('quant_method') if isinstance(how, dict) else how})"
    if any("adapter" in file for file in components(folder)[name].files):
        return "a LoRA lies beside its weights; fuse it and save the encoder"
    return ""


def check_encoders(folder: Path, settings: TextEncoderSettings) -> None:
    """Raise NotTaken where text encoders are to be quantized and there are none that can be."""
    if not settings.on:
        return
    found = encoders_of(folder)
    if any(not encoder.left for encoder in found):
        return
    reasons = "; ".join(f"{encoder.name}: {encoder.left}" for encoder in found)
    kind = find_pipeline(folder).get("_class_name", "the pipeline")
    raise NotTaken(
        f"text_encoder.bits is {settings.bits}, and {kind} has no text encoder"
        + (f" that can be quantized ({reasons})" if reasons else "")
        + f"; set text_encoder.bits={WHOLE} (nothing was started)"
    )


def shards_of(folder: Path, name: str) -> list[list[str]]:
    """Names of the stored tensors of a text encoder, in the order of its layers, cut into parts of SHARD numbers."""
    return cut(tensor_sizes(folder, name), SHARD)


def cut(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in natural order, in parts of at most so many numbers each, or of one name."""
    parts, room = list[list[str]](), 0
    for name in sorted(sizes, key=_natural):
        if not parts or sizes[name] > room:
            parts.append([])
            room = most
        parts[-1].append(name)
        room -= sizes[name]
    return parts


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers in a name sort by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def unit_of_shard(name: str, place: int) -> str:
    return f"shard/{name}/{place:03d}"
