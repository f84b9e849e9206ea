"""Perceptual's worker: LPIPS and CLIP score of finished draws."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.denoiser.device import require, settle
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.evaluation.perceptual import ROWS, check
from adatsq_pipe.storage import tables, tensors

AT_ONCE = 16
"""Pictures, or frames of a clip, in one forward pass."""

Scorer: TypeAlias = Callable[[str, Tensor, Tensor], Mapping[str, float]]
"""Of (caption, quantized, full precision), frames [F, H, W, 3] in [0, 1] each: the columns of a row."""


def lpips_scorer(device: str) -> Scorer:
    """LPIPS (Zhang et al. 1801.03924, AlexNet) of the quantized picture to the full-precision one; 0 = alike. Of a clip
    the mean over its frames."""
    network = importlib.import_module("lpips").LPIPS(net="alex", verbose=False).to(device).eval()

    def score(caption: str, quantized: Tensor, full: Tensor) -> Mapping[str, float]:
        pairs = zip(quantized.split(AT_ONCE), full.split(AT_ONCE), strict=True)
        found = [network(*(2 * x.permute(0, 3, 1, 2).to(device) - 1 for x in pair)).flatten() for pair in pairs]
        return {"lpips": float(torch.cat(found).double().mean())}

    return score


def clip_scorer(folder: Path, device: str) -> Scorer:
    """CLIP score (Hessel et al. 2104.08718, as torchmetrics has it): 100 cos(picture, caption), at least 0, of either
    picture. Of a clip the mean over its frames. Captions are cut at the model's length."""
    from transformers import CLIPModel, CLIPProcessor, logging  # takes seconds, and only this metric needs it

    logging.disable_progress_bar()
    model = CLIPModel.from_pretrained(folder, local_files_only=True).to(device).eval()
    processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    longest = model.config.text_config.max_position_embeddings

    def of(caption: str, frames: Tensor) -> float:
        found = list[Tensor]()
        for part in frames.split(AT_ONCE):
            pixels = (part.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            inputs = processor(
                text=[caption], images=list(pixels), return_tensors="pt", truncation=True, max_length=longest
            )
            answer = model(**{name: value.to(device) for name, value in inputs.items()})
            cosines = torch.nn.functional.cosine_similarity(answer.image_embeds, answer.text_embeds, dim=-1)
            found.append(cosines.double())
        return float((100 * torch.cat(found)).clamp(min=0).mean())

    def score(caption: str, quantized: Tensor, full: Tensor) -> Mapping[str, float]:
        return {"clip": of(caption, quantized), "clip_full_precision": of(caption, full)}

    return score


class Perceptual:
    """Worker of the optional metrics."""

    stage: ClassVar[str] = "perceptual"

    def __init__(self, context: Context) -> None:
        asked, compute = context.settings[EvaluateSettings], context.settings[ComputeSettings]
        check(asked)
        require(compute.device)
        settle(device=compute.device, threads=compute.threads)
        self.context = context
        self.scorers: dict[str, Scorer] = {}
        if "lpips" in asked.metrics:
            self.scorers["lpips"] = lpips_scorer(compute.device)
        if "clip" in asked.metrics:
            self.scorers["clip"] = clip_scorer(Path(asked.clip), compute.device)

    @torch.no_grad()
    def __call__(self, key: str) -> None:
        number = key.partition("/")[2]
        drawn = self.context.read("evaluate", f"quantized/{number}")[1]
        wanted = self.context.read("reference", f"draw/{number}")[1]
        samples = tables.read(drawn / "samples.parquet")
        quantized, full = (tensors.mapped(folder, "pictures").float() for folder in (drawn, wanted))
        with unit_of(self.context, self.stage, key) as unit, unit.timed("model"):
            pairs = zip(samples, _frames(quantized), _frames(full), strict=True)
            tables.write(unit.folder / ROWS, [self._row(row["prompt"], *pictures) for row, *pictures in pairs])

    def _row(self, caption: str, quantized: Tensor, full: Tensor) -> dict[str, float]:
        row: dict[str, float] = {}
        for name, scorer in self.scorers.items():
            try:
                row |= scorer(caption, quantized, full)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                size = " x ".join(map(str, quantized.shape[1:3]))
                raise StageError(
                    f"{name} cannot score a picture of {size} pixels ({' '.join(str(error).split())[:200]}); leave it "
                    "out of evaluate.metrics: what is drawn stays"
                ) from error
        return row


def _frames(pictures: Tensor) -> Sequence[Tensor]:
    """Every sample as frames [F, H, W, 3]: a picture is one."""
    return list(pictures[:, None] if pictures.ndim == 4 else pictures)
