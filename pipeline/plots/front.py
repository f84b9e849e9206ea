"""The front: mean activation bits against the error of the final latents, with the chosen policy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from adatsq_pipe.pipeline.plots.figures import pyplot, save
from adatsq_pipe.pipeline.samples import samples
from adatsq_pipe.stages.allocation.points import FILE, decibels, point_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.storage import tables

LEAST_ERROR = 1e-30
"""Errors count as at least so much: the logarithm of 0 has no place on an axis."""


def has_front(context: Context) -> bool:
    """Whether the search kept a front: a uniform allocation has one policy only."""
    return (context.manifest("search").local_folder("front") / FILE).exists()


def draw(context: Context, path: Path) -> None:
    """Draw the predicted curve, the policies that were rolled out, and the chosen one as evaluate measured it.

    Predictions include the measured error of the weights alone where the search has it.
    """
    manifest = context.manifest("search")
    rows = tables.read(manifest.local_folder("front") / FILE)
    weights = manifest.read("front").value.get("weights_error")
    figure, axis = pyplot().subplots(figsize=(6.5, 4), layout="constrained")
    predicted = sorted((row["mean_bits"], row["predicted_error"]) for row in rows if row["predicted_error"] is not None)
    if predicted:
        label = "predicted, activations alone" if weights is None else "predicted, activations and weights"
        values = [decibels(error) for _, error in predicted]
        axis.plot([bits for bits, _ in predicted], values, color="tab:blue", label=label)
    if weights is not None:
        axis.axhline(decibels(weights), color="0.5", linestyle=":", label="measured, weights alone")
    tried = [row for row in rows if row["rollout_error"] is not None]
    values = [decibels(row["rollout_error"]) for row in tried]
    bits = [row["mean_bits"] for row in tried]
    axis.plot(bits, values, "o", color="tab:orange", label="rolled out, calibration captions")
    chosen, mean_bits = chosen_error(context), point_of(context).mean_bits
    label = f"chosen, held-out captions: {decibels(chosen):.1f} dB at {mean_bits:.2f} bits"
    axis.plot([mean_bits], [decibels(chosen)], "*", color="tab:red", markersize=13, label=label)
    axis.set_xlabel("mean activation bits")
    axis.set_ylabel("final latents above their error, dB")
    axis.grid(color="0.92")
    axis.legend(fontsize=8, loc="lower right")
    save(figure, path)


def chosen_error(context: Context) -> float:
    """Relative squared error of the final latents on the held-out captions, the geometric mean."""
    errors: Sequence[float] = [row["latent_error"] for row in samples(context)]
    return math.exp(statistics.fmean(math.log(max(error, LEAST_ERROR)) for error in errors))
