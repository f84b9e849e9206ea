"""Text encoders as `inspect` and `plan` show them: their sizes, and what they would take in codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from adatsq_pipe.pipeline.commands.layout import aligned, many
from adatsq_pipe.storage.checkpoint import find_pipeline, tensor_sizes
from adatsq_pipe.storage.model_index import component_config

if TYPE_CHECKING:
    from adatsq_pipe.stages.text.footprint import EncoderFootprint


def found_in(folder: Path) -> list[EncoderFootprint]:
    """The text encoders of a pipeline folder; none of a transformer alone."""
    if not (folder / "model_index.json").is_file():
        return []
    from adatsq_pipe.stages.text.footprint import footprints  # imports torch

    return footprints(folder)


def as_plain(found: Sequence[EncoderFootprint]) -> list[dict[str, object]]:
    """As JSON values."""
    return [{key: value for key, value in asdict(one).items() if key != "shapes"} for one in found]


def as_text(found: Sequence[EncoderFootprint]) -> str:
    """A table of the encoders; "" without any."""
    if not found:
        return ""
    head = ("encoder", "class", "parameters", "bfloat16", "at 8 bits", "at 4 bits", "")
    rows = [
        (one.name, one.kind, many(one.numbers) if one.numbers else "-",
         *(f"{many(one.bytes[bits])}B" if bits in one.bytes else "-" for bits in (16, 8, 4)),
         f"stays as it is: {one.left}" if one.left else "")
        for one in found
    ]  # fmt: skip
    title = "text encoders (weights alone, with --set text_encoder.bits=8 or 4)"
    return f"{title}\n{aligned([head, *rows])}"


def packed_in(folder: Path) -> list[dict[str, object]]:
    """The text encoders in codes of a quantized folder: name, bits and bytes of their tensors."""
    found = list[dict[str, object]]()
    for name in sorted(find_pipeline(folder)):
        if not name.startswith("text_encoder") or not (folder / name / "config.json").is_file():
            continue
        config = component_config(folder, name).get("quantization_config")
        if isinstance(config, dict) and config.get("quant_method") == "adatsq":
            tensors = tensor_sizes(folder, name)
            layers = sum(tensor.endswith(".scale") for tensor in tensors)
            found.append({"name": name, "bits": int(config["bits"]), "layers": layers})
    return found
