"""The card of an assembled folder (its README.md): what it is and how it loads. An evaluated one gets another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adatsq_pipe.stages.allocation.points import point_of
from adatsq_pipe.stages.base.compression import resized, transformer_line
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.text.packed_folder import PackedEncoder, packed_encoders
from adatsq_pipe.storage.files import read_json_object
from adatsq_pipe.storage.model_files import is_inside, model_name

INHERITED = ("license", "license_name", "license_link", "language")
"""What a card says of the original that holds for its copy."""

_BODY = """# {name}, quantized

Made by adatsq-pipe from `{name}` ({pipeline}) with the recipe `{method}`. {licence}

- weights: {weight_bits:.2f} bits on average with scales and zero points, {layers} layers
- activations: {mean_bits:.2f} bits on average over timesteps and layers, {mac_bits:.2f} weighted by MACs
- transformer: {transformer}
{encoders}
{loading}"""

LOADING = """```python
import adatsq_pipe.stages.runtime  # registers the quantizer
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("this folder")
```

Without the first line diffusers stops with "Unknown quantization type, got adatsq"; `adatsq-pipe export --format
self-contained` writes a folder that needs no such line.
"""


def card(context: Context, sizes: Mapping[str, Any]) -> str:
    """Text of the card. `sizes` is what assemble counted."""
    source, name = context.model.path, model_name(context.model.path)
    inherited = front_matter(source)
    point = point_of(context)
    licence = inherited.get("license_name") or inherited.get("license")
    head = {"base_model": name, "library_name": "diffusers", "tags": ["quantized", "adatsq"], **inherited}
    return f"---\n{yaml.safe_dump(head, sort_keys=True)}---\n\n" + _BODY.format(
        name=name,
        pipeline=read_json_object(source / "model_index.json")["_class_name"],
        loading=LOADING,
        encoders="".join(map(_line, packed_encoders(context))),
        method=context.settings[Recipe].method,
        licence=f"Licence: {licence}, that of the original."
        if licence
        else "Its licence is that of the original model.",
        layers=sizes["layers"],
        weight_bits=sizes["weight_bits"],
        mean_bits=point.mean_bits,
        mac_bits=point.mac_weighted_bits,
        transformer=transformer_line(
            sizes["transformer_bytes_bf16"] / sizes["transformer_bytes"],
            sizes["layer_bytes_bf16"] / sizes["layer_bytes"],
        ),
    )


def _line(encoder: PackedEncoder) -> str:
    return (
        f"- {encoder.name} ({encoder.kind}): {resized(encoder.bytes_bf16 / encoder.bytes, ' times')} than in bfloat16, "
        "by its weights alone\n"
    )


def front_matter(source: Path) -> dict[str, object]:
    """What the original's card says of its licence and language; empty if it has no card, or none that can be read."""
    metadata = metadata_of(source)
    return {key: metadata[key] for key in INHERITED if key in metadata}


def metadata_of(source: Path) -> dict[str, object]:
    """The front matter of the original's card; empty if it has no card, or none that can be read."""
    path = source / "README.md"
    if not path.is_file() or not is_inside(source, path.name):
        return {}
    parts = path.read_text(encoding="utf-8-sig", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        metadata = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}
