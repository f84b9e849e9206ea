"""The policy in the words that vLLM-Omni, SGLang and TensorRT-LLM read: `diffusion_step_policy`, version 1.

That schema knows two modes, the checkpoint's own precision ("native") and 16-bit activations ("a16"), and may say a16
of the first n and of the last m steps alone. A policy that says more is refused, with the first step that does. The key
goes to `quantization_config.runtime` of a copy of the folder; the engines need weights of a format of theirs beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.export.formats._formats import config_of, copy_folder, transformer_of
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY
from adatsq_pipe.stages.runtime.model import quantized_layers
from adatsq_pipe.storage.files import read_json_object, write_text


def export(source: Path, out: Path) -> str:
    layers = quantized_layers(transformer_of(source))
    policy = projected({name: layer.policy.tolist() for name, layer in layers.items()})
    copy_folder(source, out)
    file = out / "transformer" / "config.json"
    config = read_json_object(file)
    config["quantization_config"] = {**(config_of(source) or {}), "runtime": {"diffusion_step_policy": policy}}
    write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
    first, last = policy["first_steps"]["count"], policy["last_steps"]["count"]
    return f"16-bit activations in the first {first} and the last {last} steps, the checkpoint's own between"


def projected(bits: dict[str, list[int]]) -> dict[str, Any]:
    """The schema's form of a policy, bits by layer and step. Raises StageError if the schema cannot say it.

    Layers whose activations are never rounded are not part of it.
    """
    rounded = [row for row in bits.values() if min(row) < WEIGHT_ONLY]
    steps = [sorted(set(step)) for step in zip(*rounded, strict=True)]
    for t, widths in enumerate(steps):
        if len(widths) > 1:
            raise StageError(
                f"step {t} has layers at {widths} bits; diffusion_step_policy has one width for all layers of a step"
            )
    widths = [step[0] for step in steps]
    native = [t for t, width in enumerate(widths) if width < WEIGHT_ONLY]
    first, last = (native[0], len(widths) - 1 - native[-1]) if native else (len(widths), 0)
    inside = sorted(set(widths[first : len(widths) - last]))
    if len(inside) > 1:
        raise StageError(
            f"the steps from {first} to {len(widths) - 1 - last} have {inside} bits; diffusion_step_policy has one "
            "native width there, and 16 bits only before and after"
        )
    return {
        "schema_version": 1,
        "type": "first_last_n",
        "index_space": "denoising_loop_iteration",
        "scope": ["transformer"],
        "default_mode": "native",
        "first_steps": {"count": first, "mode": "a16"},
        "last_steps": {"count": last, "mode": "a16"},
        "overlap": "a16",
        "reasoner": "native",
    }
