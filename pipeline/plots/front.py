"""The front: mean activation bits against the error of the final latents, with the chosen policy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from adatsq_pipe.pipeline.plots.figures import pyplot, save
from adatsq_pipe.pipeline.samples import samples
from adatsq_pipe.stages.allocation.front import policy_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY
from adatsq_pipe.storage import tables

FILE = "front.parquet"
"""Name of the table in search's unit `front`."""
LEAST_ERROR = 1e-30
"""Errors count as at least so much: the logarithm of 0 has no place on an axis."""


def has_front(context: Context) -> bool:
    """Whether the search kept a front: a uniform allocation has one policy only."""
    return (context.manifest("search").local_folder("front") / FILE).exists()


def decibels(error: float) -> float:
    """How far a relative squared error lies below what it is relative to, in dB."""
    return -10 * math.log10(max(error, LEAST_ERROR))


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
    chosen = chosen_error(context)
    label = f"chosen, held-out captions: {decibels(chosen):.1f} dB at {chosen_bits(context):.2f} bits"
    axis.plot([chosen_bits(context)], [decibels(chosen)], "*", color="tab:red", markersize=13, label=label)
    axis.set_xlabel("mean activation bits")
    axis.set_ylabel("final latents above their error, dB")
    axis.grid(color="0.92")
    axis.legend(fontsize=8, loc="lower right")
    save(figure, path)


def chosen_bits(context: Context) -> float:
    """Mean bits of the chosen policy over what is rounded."""
    rounded = [bits for row in policy_of(context).bits for bits in row if bits < WEIGHT_ONLY]
    return statistics.fmean(rounded)


def chosen_error(context: Context) -> float:
    """Relative squared error of the final latents on the held-out captions, the geometric mean."""
    errors: Sequence[float] = [row["latent_error"] for row in samples(context)]
    return math.exp(statistics.fmean(math.log(max(error, LEAST_ERROR)) for error in errors))
