"""The floor's worker: draws of the full-precision model with slightly changed weights, against the reference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict
from typing import ClassVar

import torch
from torch import nn

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.micro_batch import OutOfMemoryBackoff
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.evaluation.floor import SCALE, Floor
from adatsq_pipe.stages.evaluation.sampling import draws, followed
from adatsq_pipe.stages.numerics.metrics import psnr, relative_error
from adatsq_pipe.storage import tables, tensors

LARGEST = 8.0
"""Draws from a normal distribution are smaller: one in 10^15 is not."""

MOST_PSNR = 200.0
"""dB of equal pictures. Evaluate's 100 would hide the distance."""


def change_weights(modules: Iterable[nn.Module], scale: float, seed: int) -> tuple[int, int]:
    """Multiply every floating-point weight by 1 + scale n, n ~ N(0, 1), in place.

    Products are made in float64 and rounded to the weight's dtype once. Returns (weights, how many of them changed).
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    weights = changed = 0
    parameters = {id(p): p for module in modules for p in module.parameters() if p.is_floating_point()}
    for parameter in parameters.values():
        weights += parameter.numel()
        if torch.finfo(parameter.dtype).eps / 4 > LARGEST * scale:
            continue  # Every product would round to the weight itself.
        normal = torch.randn(parameter.shape, generator=generator).to(parameter.device).double()
        product = (parameter.detach().double() * (1 + scale * normal)).to(parameter.dtype)
        changed += int((product != parameter).sum())
        parameter.data.copy_(product)
    return weights, changed


class ChangedDraws(OutOfMemoryBackoff):
    """Worker of the draws with changed weights."""

    stage: ClassVar[str] = "floor"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    def __call__(self, key: str) -> None:
        conditions = draws(self.context)[int(key.partition("/")[2])]
        folder = self.context.read("reference", key)[1]
        wanted = {name: tensors.mapped(folder, name) for name in ("latents", "pictures")}
        with unit_of(self.context, self.stage, key, self.micro) as unit:
            denoiser = denoiser_of(self.context, self.micro, to_change=True)
            seed = self.context.settings[EvaluateSettings].seed
            weights, changed = change_weights(denoiser.parts.values(), SCALE, seed)
            errors, distances = list[float](), list[float]()
            if changed:
                states, pictures = followed(denoiser, conditions, unit)
                errors = [relative_error(*pair) for pair in zip(states[-1], wanted["latents"], strict=True)]
                pairs = zip(pictures, wanted["pictures"], strict=True)
                distances = [min(psnr(*pair, peak=1.0), MOST_PSNR) for pair in pairs]
            drawn = zip(conditions.prompts, conditions.seeds, errors, distances, strict=bool(changed))
            rows = [dict(zip(("prompt", "seed", "latent_error", "psnr"), row, strict=True)) for row in drawn]
            tables.write(unit.folder / "samples.parquet", rows)
            logs = [math.log(max(error, 1e-30)) for error in errors]
            floor = Floor(
                latent_error=math.exp(statistics.fmean(logs)) if logs else None,
                psnr=statistics.fmean(distances) if distances else None,
                draws=len(rows),
                weights=weights,
                changed=changed,
            )
            unit.value = asdict(floor)
