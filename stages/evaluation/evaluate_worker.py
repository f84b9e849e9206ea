"""Evaluate's worker: draws with the assembled model and scores against the reference."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.micro_batch import OutOfMemoryBackoff
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings, draw_unit
from adatsq_pipe.stages.evaluation.sampling import drawn, draws
from adatsq_pipe.stages.numerics.metrics import psnr, relative_error
from adatsq_pipe.stages.scenes.world import scorer
from adatsq_pipe.stages.scenes.world.detector import Array
from adatsq_pipe.stages.scenes.world.prompts import parse_prompt
from adatsq_pipe.storage import tables, tensors


class Evaluate(OutOfMemoryBackoff):
    """Worker of the quantized draws."""

    stage: ClassVar[str] = "evaluate"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.batches = draws(context)
        self.world = context.settings[ModelSettings].world

    def _score(self, samples: list[tables.Row], shard: int, pictures: Array, reference: Array) -> dict[str, Tensor]:
        """Score each picture against its prompt, quantized and full precision; return their features."""
        settings = self.context.settings[EvaluateSettings]
        wanted = [parse_prompt(row["prompt"], self.world) for row in samples]
        verdicts = zip(scorer.verdicts(wanted, pictures), scorer.verdicts(wanted, reference), strict=True)
        for i, (row, (got, right)) in enumerate(zip(samples, verdicts, strict=True)):
            row["entry"] = (shard * settings.batch + i) % len(settings.prompts)
            row["tasks"], row["right"], row["reference_right"] = list(got), list(got.values()), list(right.values())
        both = {"features": pictures, "reference_features": reference}
        return {name: torch.from_numpy(scorer.features(each)) for name, each in both.items()}

    def __call__(self, key: str) -> None:
        shard = int(key.partition("/")[2])
        model = self.context.read("assemble", "model")[1]
        folder = self.context.read("reference", draw_unit(shard))[1]
        wanted = {name: tensors.mapped(folder, name) for name in ("states", "latents", "pictures")}
        with unit_of(self.context, self.stage, key, self.micro) as unit:
            states, pictures = drawn(self.context, self.micro, model, self.batches[shard], unit)
            samples, steps = [], []
            for i, prompt in enumerate(self.batches[shard].prompts):
                picture, reference = pictures[i], wanted["pictures"][i]
                samples.append(
                    {
                        "prompt": prompt,
                        "seed": self.batches[shard].seeds[i],
                        "latent_error": relative_error(states[-1][i], wanted["latents"][i]),
                        "latent_psnr": psnr(states[-1][i], wanted["latents"][i], peak=_range(wanted["latents"][i])),
                        "psnr": min(psnr(picture, reference, peak=1.0), 100.0),
                        "ssim": _ssim(picture.numpy(), reference.numpy()),
                    }
                )
            results = {"pictures": pictures}
            if self.world:
                results |= self._score(samples, shard, pictures.numpy(), wanted["pictures"].numpy())
            for t, (state, reference) in enumerate(zip(states[:-1], wanted["states"], strict=True)):
                error = relative_error(state, reference)
                steps.append(
                    {"step": t, "error": error, "psnr": min(psnr(state, reference, peak=_range(reference)), 100.0)}
                )
            tables.write(unit.folder / "samples.parquet", samples)
            tables.write(unit.folder / "steps.parquet", steps)
            tensors.write(unit.folder, results)


def _range(x: Tensor) -> float:
    return float(x.max() - x.min())


def _ssim(picture: Array, reference: Array) -> float:
    """Structural similarity of pictures [H, W, 3], or the mean over the frames of a video."""

    frames = [(picture, reference)] if picture.ndim == 3 else list(zip(picture, reference, strict=True))
    window = min(7, (min(picture.shape[-3:-1]) - 1) // 2 * 2 + 1)
    return float(
        np.mean([structural_similarity(a, b, channel_axis=-1, data_range=1.0, win_size=window) for a, b in frames])
    )
