"""The weight bits of every layer."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from adatsq_pipe.pipeline.plots.figures import height_of, name_layers, pyplot, save
from adatsq_pipe.stages.weights.widths import WeightWidths

WIDEST = 8
"""Most bits that a weight can have."""


def draw(widths: WeightWidths, file: Path | BytesIO) -> None:
    """Draw a bar for each layer whose input is rounded, and the mean over parameters, to `file`."""
    plt = pyplot()
    names, bits = list(widths.bits), list(widths.bits.values())
    figure, axis = plt.subplots(figsize=(6.5, height_of(len(names))), layout="constrained")
    colours = plt.get_cmap("viridis")
    axis.barh(range(len(bits)), bits, height=0.8, color=[colours((b - 2) / (WIDEST - 2)) for b in bits])
    axis.axvline(widths.mean, color="black", linestyle=":")
    axis.set_xlim(0, WIDEST + 0.3)
    axis.set_xticks(range(0, WIDEST + 1))
    axis.set_ylim(len(bits) - 0.5, -0.5)
    axis.set_xlabel("weight bits")
    axis.set_title(f"mean over parameters {widths.mean:.2f} bits (dotted)", fontsize=10)
    name_layers(axis, names)
    save(figure, file)
