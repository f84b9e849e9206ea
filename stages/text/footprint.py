"""What a pipeline's text encoders would take in codes, from their configs alone: no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from adatsq_pipe.stages.numerics.packing import packed_bytes
from adatsq_pipe.stages.runtime.text_layers import packings, tied
from adatsq_pipe.stages.text.encoders import WHOLE, Encoder, encoders_of
from adatsq_pipe.stages.text.stored_encoder import model_class

BITS = (8, 4)


@dataclass(frozen=True, kw_only=True)
class EncoderFootprint:
    """A text encoder by its size; bytes, where what is not in codes counts in bfloat16."""

    name: str
    kind: str
    left: str
    """Why it would not be quantized; "" if it would."""
    numbers: int
    """0 where its config makes no model here."""
    bytes: Mapping[int, int]
    """By bits of the setting: 16, and where it can be quantized 8 and 4."""
    shapes: tuple[tuple[int, int, int], ...] = ()
    """(inputs, outputs, layers) of what would have 4 bits."""


def footprints(folder: Path) -> list[EncoderFootprint]:
    """Of every text encoder of the pipeline in `folder`, which may have no weights."""
    return [_footprint(folder, encoder) for encoder in encoders_of(folder)]


def _footprint(folder: Path, encoder: Encoder) -> EncoderFootprint:
    made, model = model_class(encoder.kind), None
    if made is not None:
        try:
            config = made.config_class.from_pretrained(folder / encoder.name)
            with torch.device("meta"):
                model = made(config)
        except Exception:  # a config of another version: whatever its class raises
            model = None
    if model is None:
        why = encoder.left or f"{encoder.kind} and its config make no model of the installed transformers"
        return EncoderFootprint(name=encoder.name, kind=encoder.kind, left=why, numbers=0, bytes={})
    shared = tied(model)
    sizes = {n: p.numel() for n, p in model.named_parameters() if n.removesuffix(".weight") not in shared}
    numbers = sum(sizes.values())
    bytes_of, shapes = {WHOLE: 2 * numbers}, dict[tuple[int, int], int]()
    for bits in () if encoder.left else BITS:
        total = 2 * numbers
        for module, packing in packings(model, bits).items():
            if module in shared:
                continue
            rows, width = model.get_parameter(f"{module}.weight").shape
            groups = width // packing.group if packing.group else 1
            total += rows * (packed_bytes(width, packing.bits) + 3 * groups) - 2 * rows * width
            if packing.bits == min(BITS):
                shapes[width, rows] = shapes.get((width, rows), 0) + 1
        bytes_of[bits] = total
    return EncoderFootprint(
        name=encoder.name,
        kind=encoder.kind,
        left=encoder.left,
        numbers=numbers,
        bytes=bytes_of,
        shapes=tuple((*shape, count) for shape, count in sorted(shapes.items())),
    )
