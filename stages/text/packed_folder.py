"""The folder of a quantized text encoder, from the units of its stage: as `from_pretrained` loads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.text.encoders import TextEncoderSettings, encoders_of, shards_of, unit_of_shard
from adatsq_pipe.storage.checkpoint import write_shards

FORMAT = 1
"""That of `runtime.text_quantizer`, which this must not import: a reader of sizes needs no torch."""
FILE = "weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class PackedEncoder:
    """A quantized text encoder in numbers."""

    name: str
    kind: str
    numbers: int
    """In its weights."""
    numbers_in_codes: int
    bytes_bf16: int
    bytes: int
    """What is not in codes counts in bfloat16."""
    weight_error: float
    """Relative L2 error of the weights that are in codes."""
    left: tuple[str, ...]
    """Modules that would be quantized and could not be."""


def packed_names(context: Context) -> list[str]:
    """The text encoders that the run quantizes."""
    if not context.settings[TextEncoderSettings].on:
        return []
    return [encoder.name for encoder in encoders_of(context.model.path) if not encoder.left]


def packed_encoders(context: Context) -> list[PackedEncoder]:
    """The run's quantized text encoders, from the markers of the stage."""
    names, found = packed_names(context), list[PackedEncoder]()
    kinds = {e.name: e.kind for e in encoders_of(context.model.path)} if names else {}
    for name in names:
        values = [context.manifest("text_encoder").read(unit).value for unit in _units(context, name)]
        total = {
            key: sum(value[key] for value in values)
            for key in ("numbers", "numbers_in_codes", "bytes_in_codes", "squared_error", "squared_weights")
        }
        found.append(
            PackedEncoder(
                name=name,
                kind=kinds[name],
                numbers=total["numbers"],
                numbers_in_codes=total["numbers_in_codes"],
                bytes_bf16=2 * total["numbers"],
                bytes=total["bytes_in_codes"] + 2 * (total["numbers"] - total["numbers_in_codes"]),
                weight_error=(total["squared_error"] / max(total["squared_weights"], 1e-300)) ** 0.5,
                left=tuple(values[0]["left"]),
            )
        )
    return found


def write_encoder(context: Context, name: str, target: Path, place: Callable[[Path, Path], object]) -> None:
    """Write the encoder `name` to `target / name`; `place(file, to)` brings a file of weights there."""
    units = [context.read("text_encoder", unit) for unit in _units(context, name)]
    config = {
        "quant_method": "adatsq",
        "format": FORMAT,
        "bits": context.settings[TextEncoderSettings].bits,
        "left": list(units[0][0].value["left"]),
    }
    shards = [(folder / FILE, marker.value["tensors"]) for marker, folder in units]
    write_shards(
        context.model.path, target, part=name, shards=[s for s in shards if s[1]], quantization_config=config,
        place=place,
    )  # fmt: skip


def _units(context: Context, name: str) -> list[str]:
    return [unit_of_shard(name, place) for place in range(len(shards_of(context.model.path, name)))]
