"""Assemble: packed codes, scales and policy become a diffusers folder that `from_pretrained` loads.

Unit: `model`, the folder itself. Everything outside the quantized layers is copied as the source folder stores it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from adatsq_pipe.stages import capture, search
from adatsq_pipe.stages.base import (
    Context,
    Executor,
    ModelSettings,
    Report,
    Settings,
    Stage,
    StageError,
    fan_out,
    unit_of,
)
from adatsq_pipe.storage.fingerprint import Plain


class AssembleSettings(Settings):
    """[assemble] Nothing to set."""


class Assemble:
    """The stage's worker."""

    stage: ClassVar[str] = "assemble"

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, key: str) -> None:
        from adatsq_pipe.stages.card import card
        from adatsq_pipe.stages.runtime.spec import FORMAT
        from adatsq_pipe.storage.checkpoint import write_pipeline

        source = Path(self.context.model)
        with unit_of(self.context, self.stage, key) as unit:
            stored, layers, unit.value = self._tensors(source)
            config = {
                "quant_method": "adatsq",
                "format": FORMAT,
                "layers": layers,
                "timesteps": capture.survey_of(self.context)["timesteps"],
            }
            write_pipeline(
                source, unit.folder, tensors=stored, quantization_config=config, card=card(self.context, unit.value)
            )
            model = self.context.settings("model", ModelSettings)
            if model.call:
                said = {"call": dict(model.call), "world": model.world}
                (unit.folder / "sampling.json").write_text(json.dumps(said, indent=1) + "\n")

    def _tensors(self, source: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """(all tensors of the transformer, layer specs, sizes)."""
        import torch

        from adatsq_pipe.stages.numerics.packing import pack
        from adatsq_pipe.storage import tensors
        from adatsq_pipe.storage.checkpoint import read_transformer

        stored = read_transformer(source)
        policy, specs = search.policy_of(self.context), dict[str, Any]()
        before, after, weights = 0, 0, 0
        for i, row in enumerate(capture.survey_of(self.context)["layers"]):
            name = row["name"]
            marker, folder = self.context.read("solve", f"layer/{name}")
            solved, spec = tensors.read(folder), marker.value["spec"]
            if stored.pop(f"{name}.weight", None) is None:
                raise StageError(f"{source}/transformer stores no tensor {name}.weight; its names are not the model's")
            parts = {
                **solved,
                "codes": pack(solved["codes"], spec["weight_bits"]),
                "policy": torch.tensor([step[i] for step in policy.bits], dtype=torch.uint8),
            }
            if "bias" in parts:
                parts["bias"] = parts["bias"].to(stored[f"{name}.bias"].dtype)
            stored.update({f"{name}.{part}": tensor for part, tensor in parts.items()})
            parts.pop("bias", None)
            specs[name] = spec
            weights += row["in"] * row["out"]
            before += 2 * row["in"] * row["out"]
            after += sum(tensor.nbytes for tensor in parts.values())
        rest = sum(t.numel() * 2 for name, t in stored.items() if name.rpartition(".")[0] not in specs)
        rest += sum(t.numel() * 2 for name, t in stored.items() if name.endswith(".bias") and name[:-5] in specs)
        steps_of = len(policy.bits) * len(specs)
        bits = 8 * (after - steps_of) / weights
        sizes = {
            "layers": len(specs),
            "weight_bits": bits,
            "layer_bytes_bf16": before,
            "layer_bytes": after,
            "transformer_bytes_bf16": before + rest,
            "transformer_bytes": after + rest,
            "policy_digest": policy.digest,
        }
        return stored, specs, sizes


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, Assemble, ["model"], report)


def _reads(tables: Mapping[str, Any], model: str) -> Plain:
    return {"model": model, **{key: tables["model"][key] for key in ("call", "world")}}


STAGE = Stage(
    name="assemble",
    version=3,
    needs=("capture", "solve", "search"),
    reads=_reads,
    run=run,
    expected=lambda context: 1,
    settings=AssembleSettings,
)
