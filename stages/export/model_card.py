"""The model card of a quantized folder (its README.md): what it is, what it scores, how it loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adatsq_pipe.stages.allocation.points import point_of
from adatsq_pipe.stages.allocation.sensitivity import sensitivity_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.weights.widths import weight_widths
from adatsq_pipe.storage.files import read_json_object
from adatsq_pipe.storage.model_files import is_inside, model_name

INHERITED = ("license", "license_name", "license_link", "language")
"""What a card says of the original that holds for its copy."""

_BODY = """# {name}, quantized

Made by adatsq-pipe from `{name}` ({pipeline}) with the recipe `{method}`. {licence}

- weights: {weight_bits:.2f} bits on average with scales and zero points, {layers} layers
- activations: {mean_bits:.2f} bits on average over timesteps and layers, {mac_bits:.2f} weighted by MACs
- transformer: {ratio:.2f} times smaller than in bfloat16 (its quantized layers {layer_ratio:.2f} times)

{loading}"""

LOADING = """```python
import adatsq_pipe.stages.runtime  # registers the quantizer
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("this folder")
```

Without the first line diffusers stops with "Unknown quantization type, got adatsq"; `adatsq-pipe export --format
self-contained` writes a folder that needs no such line.
"""

_SCORES = """
## What it scores

Against the full-precision pipeline, on {captions} captions x {seeds} seeds (mean, standard error):

| measure | value |
|---|---|
{rows}

## What it does

![Sensitivity and activation bits of every layer at every denoising step](policy.png)

- sensitivity measured: {sensitivity}
- weights of layers that see tokens, without scales: {widths}

The policy follows the denoiser's own timestep: at other step counts each step takes the bits of the nearest calibrated
noise level.
"""


def card(context: Context, sizes: Mapping[str, Any], quality: Mapping[str, Any] | None = None) -> str:
    """Text of the card. `sizes` is what assemble counted, `quality` what evaluate measured (None: not evaluated)."""
    source, name = context.model.path, model_name(context.model.path)
    inherited = front_matter(source)
    point = point_of(context)
    licence = inherited.get("license_name") or inherited.get("license")
    head = {"base_model": name, "library_name": "diffusers", "tags": ["quantized", "adatsq"], **inherited}
    text = f"---\n{yaml.safe_dump(head, sort_keys=True)}---\n\n" + _BODY.format(
        name=name,
        pipeline=read_json_object(source / "model_index.json")["_class_name"],
        loading=LOADING,
        method=context.settings[Recipe].method,
        licence=f"Licence: {licence}, that of the original."
        if licence
        else "Its licence is that of the original model.",
        layers=sizes["layers"],
        weight_bits=sizes["weight_bits"],
        mean_bits=point.mean_bits,
        mac_bits=point.mac_weighted_bits,
        ratio=sizes["transformer_bytes_bf16"] / sizes["transformer_bytes"],
        layer_ratio=sizes["layer_bytes_bf16"] / sizes["layer_bytes"],
    )
    if quality is None:
        return text
    facts = {"sensitivity": sensitivity_of(context), "widths": weight_widths(context)}
    return text + _SCORES.format(**quality, **facts, rows="\n".join(_rows(quality)))


def _rows(quality: Mapping[str, Any]) -> list[str]:
    named = (
        ("psnr", "PSNR of pictures, dB", 1),
        ("ssim", "SSIM of pictures", 3),
        ("latent_error", "error of latents", 3),
    )
    rows = [
        f"| {title} | {quality[key]['mean']:.{digits}f} +- {quality[key]['standard_error']:.{digits}f} |"
        for key, title, digits in named
    ]
    if scores := quality["asked_for"]:
        for title, key in (("full precision", "full_precision"), ("quantized", "quantized")):
            total = scores[key]["total"]
            rows.append(f"| matches the prompt, {title} | {total['mean']:.3f} +- {total['standard_error']:.3f} |")
    return rows


def front_matter(source: Path) -> dict[str, object]:
    """What the original's card says of its licence and language; empty if it has no card, or none that can be read."""
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
    return {key: metadata[key] for key in INHERITED if key in metadata} if isinstance(metadata, dict) else {}
