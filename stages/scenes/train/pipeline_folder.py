"""What training leaves in a pipeline's folder: weights, sampling.json, training.json, loss curves and samples.png."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import DiffusionPipeline

from adatsq_pipe.stages.scenes.train.families import Plan
from adatsq_pipe.stages.scenes.world import captions, prompts
from adatsq_pipe.storage.files import read_json, read_json_object, write_text


def export(pipeline: DiffusionPipeline, call: dict[str, int | float], out: Path, *, world: str) -> None:
    """Write the pipeline folder, with the transformer and the autoencoder in bf16.

    The text encoders stay fp32: transformers loads the stored dtype, diffusers loads fp32 by default, and a plain
    `from_pretrained` must give one dtype throughout. The configs do not name the folder that a part was loaded from.
    """
    pipeline.transformer.to(torch.bfloat16)
    pipeline.vae.to(torch.bfloat16, memory_format=torch.contiguous_format)
    for part in (pipeline.transformer, pipeline.vae):
        part.register_to_config(_name_or_path="")
    pipeline.save_pretrained(out)
    write_text(out / "sampling.json", json.dumps({"call": call, "world": world}, indent=1) + "\n")


def draw_samples(folder: Path, count: int) -> None:
    """Write samples.png beside the weights: `count` held-out captions (or classes), drawn in one call."""
    plt.switch_backend("Agg")
    sampling = read_json_object(folder / "sampling.json")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    call = {**sampling["call"], "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    if sampling["world"] == "classes":
        titles = [" ".join(thing) for thing in captions.CLASSES[:count]]
        pictures = pipeline(class_labels=list(range(len(titles))), **call)[0]
    else:
        titles = list(prompts.draw_prompts(count, world=sampling["world"], split="held_out", seed=0))
        pictures = pipeline(titles, **call)[0]
    rows = -(-len(titles) // 8)
    figure, axes = plt.subplots(rows, 8, figsize=(12, 1.65 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, caption in zip(axes.flat, np.asarray(pictures), titles, strict=False):
        axis.imshow(picture if picture.ndim == 3 else np.concatenate(picture[:: len(picture) - 1], 1))
        axis.set_title(caption.replace(" left", "\nleft").replace(" right", "\nright"), fontsize=6)
    figure.tight_layout()
    figure.savefig(folder / "samples.png", dpi=80)


def plan_history(start: Path | None) -> list[dict[str, Any]]:
    """The plans that trained the weights in `start`, first to last."""
    if start is None or not (start / "training.json").exists():
        return []
    return list(read_json(start / "training.json"))


def write_history(work: Path, out: Path, start: Path | None, plan: Plan) -> None:
    """Write loss curves and training.json beside the weights, each a continuation of those in `start`."""
    write_text(out / "training.json", json.dumps([*plan_history(start), asdict(plan)], indent=1) + "\n")
    for curve in sorted({path.name for path in [*work.glob("*_loss.csv"), *(start or work).glob("*_loss.csv")]}):
        rows: list[list[str]] = []
        for folder in [start, work] if start else [work]:
            if (folder / curve).exists():
                last = int(rows[-1][0]) if rows else 0
                with (folder / curve).open(encoding="utf-8") as file:
                    rows += [[str(last + int(step)), loss] for step, loss in list(csv.reader(file))[1:]]
        with (out / curve).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["step", "loss"], *rows])
