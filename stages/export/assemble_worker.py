"""Assemble's worker: writes the quantized pipeline folder.

Names, shapes and sizes are collected first. Tensors are read, and codes packed, as a shard is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from adatsq_pipe.stages.allocation.front import policy_of
from adatsq_pipe.stages.architecture.families._family import families
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import NotTaken, StageError
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.base.survey import Survey
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.denoiser.inspection import on_meta
from adatsq_pipe.stages.denoiser.stored_names import ignored
from adatsq_pipe.stages.export.model_card import card
from adatsq_pipe.stages.numerics.packing import pack, packed_bytes
from adatsq_pipe.stages.runtime.spec import FORMAT
from adatsq_pipe.stages.text.packed_folder import packed_names, write_encoder
from adatsq_pipe.storage import tensors
from adatsq_pipe.storage.checkpoint import stored_tensors, write_component, write_pipeline
from adatsq_pipe.storage.files import link_or_copy, write_text
from adatsq_pipe.storage.fingerprint import Plain
from adatsq_pipe.storage.model_index import component_config
from adatsq_pipe.storage.weights import LazyTensor

T = TypeVar("T")


class Assemble:
    """The stage's worker."""

    stage: ClassVar[str] = "assemble"

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, key: str) -> None:
        source = self.context.model.path
        with unit_of(self.context, self.stage, key) as unit:
            header = {"quant_method": "adatsq", "format": FORMAT}
            timesteps = survey_of(self.context).timesteps
            parts, unit.value = self._tensors(source)
            encoders = packed_names(self.context)
            text = card(self.context, unit.value)
            for i, (part, (stored, layers)) in enumerate(parts.items()):
                config = {**header, "layers": layers, "timesteps": timesteps, **_timestep_of(source, part)}
                write = write_component if i else partial(write_pipeline, card=text, others=[*parts, *encoders])
                write(source, unit.folder, part=part, tensors=stored, quantization_config=config)
            for name in encoders:
                write_encoder(self.context, name, unit.folder, link_or_copy)
            model = self.context.settings[ModelSettings]
            if model.call:
                called = {"call": dict(model.call), "world": model.world}
                write_text(unit.folder / "sampling.json", json.dumps(called, indent=1) + "\n")

    def _tensors(
        self, source: Path
    ) -> tuple[dict[str, tuple[dict[str, Tensor | LazyTensor], dict[str, Plain]]], dict[str, Plain]]:
        """(all tensors and layer specs by denoiser, sizes in all). Of several denoisers names begin with the part."""
        survey = survey_of(self.context)
        prefixes = {part: f"{part}." for part in survey.steps_of_component} or {"transformer": ""}
        stored: dict[str, Tensor | LazyTensor] = {
            f"{prefix}{name}": tensor
            for part, prefix in prefixes.items()
            for name, tensor in _of_model(source, part, prefix, survey).items()
        }
        policy, specs = policy_of(self.context), dict[str, Plain]()
        before, after, weights = 0, 0, 0
        for i, row in enumerate(survey.layers):
            name = row.name
            marker, folder = self.context.read("solve", f"layer/{name}")
            solved, spec = tensors.lazy(folder), marker.value["spec"]
            if stored.pop(f"{name}.weight", None) is None:
                raise StageError(f"{source} stores no tensor {name}.weight; its names are not the model's")
            parts: dict[str, Tensor | LazyTensor] = {
                **solved,
                "codes": _packed(solved["codes"], spec["weight_bits"]),
                "policy": torch.tensor(policy.of_layer(i), dtype=torch.uint8),
            }
            if "bias" in parts:
                parts["bias"] = _cast(solved["bias"], _at_least_16_bits(stored[f"{name}.bias"].dtype))
            stored.update({f"{name}.{part}": tensor for part, tensor in parts.items()})
            parts.pop("bias", None)
            specs[name] = spec
            weights += row.in_features * row.out_features
            before += 2 * row.in_features * row.out_features
            after += sum(tensor.nbytes for tensor in parts.values())
        rest = sum(t.numel() * 2 for name, t in stored.items() if name.rpartition(".")[0] not in specs)
        rest += sum(t.numel() * 2 for name, t in stored.items() if name.endswith(".bias") and name[:-5] in specs)
        steps_of = policy.steps * len(specs)
        bits = 8 * (after - steps_of) / weights
        sizes: dict[str, Plain] = {
            "layers": len(specs),
            "weight_bits": bits,
            "layer_bytes_bf16": before,
            "layer_bytes": after,
            "transformer_bytes_bf16": before + rest,
            "transformer_bytes": after + rest,
            "policy_digest": policy.digest,
        }
        return {part: (_below(prefix, stored), _below(prefix, specs)) for part, prefix in prefixes.items()}, sizes


def _timestep_of(source: Path, part: str) -> dict[str, str]:
    """What a family says of the timestep of the denoiser `part`, for the model's config; else nothing."""
    kind = component_config(source, part).get("_class_name", "")
    argument = families()[kind].timestep if kind in families() else ""
    return {"timestep": argument} if argument else {}


def _of_model(source: Path, part: str, prefix: str, survey: Survey) -> dict[str, LazyTensor]:
    """The stored tensors of a denoiser that diffusers takes. It warns of others, and the result would not load."""
    stored, layers = stored_tensors(source, part), tuple(f"{row.name}." for row in survey.layers)
    try:
        model = on_meta(component_config(source, part), source / part)
    except NotTaken:  # a class of another library
        return stored
    dropped = ignored(model, stored)
    return {n: t for n, t in stored.items() if n not in dropped or f"{prefix}{n}".startswith(layers)}


def _packed(codes_OI: LazyTensor, bits: int) -> LazyTensor:
    out, width = codes_OI.shape
    return LazyTensor((out, packed_bytes(width, bits)), torch.uint8, lambda: pack(codes_OI.load(), bits))


def _cast(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    return LazyTensor(tensor.shape, dtype, lambda: tensor.load().to(dtype))


def _at_least_16_bits(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a changed tensor: that of the original, unless it has 8 bits, which would round the change away."""
    return dtype if dtype.itemsize > 1 else torch.float32


def _below(prefix: str, named: Mapping[str, T]) -> dict[str, T]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
