"""The latents' PSNR over the steps."""

from __future__ import annotations

from pathlib import Path

from adatsq_pipe.pipeline.plots.figures import pyplot, save
from adatsq_pipe.pipeline.summary import PerStep


def draw(per_step: PerStep, path: Path) -> None:
    """Draw to `path`. The first step is left out: both models start from the same noise."""
    figure, axis = pyplot().subplots(figsize=(6, 3), layout="constrained")
    values = per_step.latent_psnr_db[1:]
    axis.plot(range(1, 1 + len(values)), values, marker=".")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("denoising step")
    axis.set_ylabel("PSNR of latents\nto full precision, dB")
    save(figure, path)
