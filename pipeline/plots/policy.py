"""The policy, layers by steps, beside the map of sensitivities that it answers."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np

from adatsq_pipe.pipeline.plots.figures import height_of, name_layers, pyplot, save
from adatsq_pipe.stages.allocation.front import policy_of
from adatsq_pipe.stages.allocation.sensitivity import MAP_BITS, sensitivity_map
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.effects import is_end_to_end
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY

NOT_ROUNDED = "0.85"
"""Grey of (step, layer) where nothing is rounded."""
DECADES = 6
"""The map's colours reach so many powers of ten below its largest value."""


def draw(context: Context, file: Path | BytesIO) -> None:
    """Draw log10 of the sensitivities and the activation bits to `file`; layers that are never rounded are left out."""
    plt = pyplot()
    bits = np.array(policy_of(context).bits).T
    rounded_layers = [place for place, row in enumerate(bits) if row.min() < WEIGHT_ONLY]
    used = bits[rounded_layers] < WEIGHT_ONLY
    names = [survey_of(context).layers[place].name for place in rounded_layers]
    cost = np.where(used, sensitivity_map(context).T[rounded_layers], 0.0)
    logs = np.ma.log10(np.ma.masked_less_equal(cost, 0.0))
    rounded = np.ma.masked_where(~used, bits[rounded_layers])
    widths = sorted(set(rounded.compressed().tolist()))
    colours = plt.get_cmap("viridis", len(widths)).with_extremes(bad=NOT_ROUNDED)
    figure, (left, right) = plt.subplots(1, 2, sharey=True, figsize=(9.5, height_of(len(names))), layout="constrained")
    image = left.imshow(
        logs, aspect="auto", cmap=plt.get_cmap("magma").with_extremes(bad=NOT_ROUNDED), interpolation="nearest"
    )
    if logs.count():
        image.set_clim(max(float(logs.min()), float(logs.max()) - DECADES), float(logs.max()))
    end_to_end = is_end_to_end(context)
    left.set_title("sensitivity", fontsize=10)
    what = f"share of the effect of {MAP_BITS} bits everywhere" if end_to_end else "Fisher score"
    figure.colorbar(image, ax=left, extend="min", label=f"log10, {what}")
    places = np.searchsorted(widths, rounded.filled(widths[0]))
    image = right.imshow(
        np.ma.masked_where(~used, places),
        aspect="auto",
        cmap=colours,
        vmin=-0.5,
        vmax=len(widths) - 0.5,
        interpolation="nearest",
    )
    right.set_title("policy", fontsize=10)
    figure.colorbar(image, ax=right, ticks=range(len(widths)), label="activation bits").set_ticklabels(widths)
    for axis in (left, right):
        axis.set_xlabel("denoising step")
        axis.xaxis.get_major_locator().set_params(integer=True)
    name_layers(left, names)
    right.tick_params(axis="y", length=0)
    save(figure, file)
