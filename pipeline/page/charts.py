"""The page's plots, by plotly: each with the table of what it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from adatsq_pipe.pipeline.page.tables import Cell, Table
from adatsq_pipe.pipeline.summary import Summary
from adatsq_pipe.stages.allocation.front import policy_of
from adatsq_pipe.stages.allocation.points import decibels, front_of, point_of
from adatsq_pipe.stages.allocation.sensitivity import sensitivity_map
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY

ROW_PIXELS = 13
"""Height of a layer in the heat maps."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plot, and what it shows as a table. `description` is read out where the plot cannot be seen."""

    title: str
    description: str
    figure: go.Figure
    table: Table


def policy_chart(context: Context) -> Chart:
    """Activation bits of every rounded layer at every step, beside the sensitivity there."""
    bits, names = np.array(policy_of(context).bits).T, [layer.name for layer in survey_of(context).layers]
    chosen = [place for place, row in enumerate(bits) if row.min() < WEIGHT_ONLY]
    bits, names = bits[chosen], [names[place] for place in chosen]
    used = bits < WEIGHT_ONLY
    cost = np.where(used, sensitivity_map(context).T[chosen], 0.0)
    logs = np.where(cost > 0, np.log10(np.where(cost > 0, cost, 1.0)), np.nan)
    figure = make_subplots(
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.02,
        subplot_titles=("log10 of the sensitivity", "activation bits"),
    )
    shared = {"y": names, "hovertemplate": "%{y}<br>step %{x}: %{z}<extra></extra>"}
    figure.add_heatmap(z=logs, colorscale="Magma", showscale=False, col=1, row=1, **shared)
    shown_bits, widths = np.where(used, bits, np.nan), sorted(set(bits[used].tolist()))
    figure.add_heatmap(
        z=shown_bits, colorscale="Viridis", colorbar={"title": "bits", "tickvals": widths}, col=2, row=1, **shared
    )
    figure.update_yaxes(autorange="reversed", tickfont={"size": 9})
    figure.update_xaxes(title="denoising step")
    figure.update_layout(height=160 + ROW_PIXELS * len(names))
    rows: list[list[Cell]] = [
        [name, step, int(bits[i, step]), float(cost[i, step])]
        for i, name in enumerate(names)
        for step in range(bits.shape[1])
        if used[i, step]
    ]
    return Chart(
        title="Policy and sensitivity",
        description=f"Heat maps of {len(names)} layers by {bits.shape[1]} denoising steps: the sensitivity, and the "
        f"activation bits from {widths[0]} to {widths[-1]}",
        figure=figure,
        table=Table(name="policy", columns=("layer", "step", "activation bits", "sensitivity"), rows=rows),
    )


def front_chart(context: Context, where: str) -> Chart:
    """Mean activation bits against the error, with the command that picks a point; `where` names the run."""
    front, chosen = front_of(context), point_of(context)
    known = [(point, error) for point in front.points if (error := point.error) is not None]
    commands = [f"adatsq-pipe pick {where} --mean-bits {point.mean_bits:.4g}" for point, _ in known]
    figure = go.Figure()
    figure.add_scatter(
        x=[point.mean_bits for point, _ in known],
        y=[decibels(error) for _, error in known],
        customdata=commands,
        mode="lines+markers",
        name="predicted, or rolled out",
        hovertemplate="%{x:.2f} bits: %{y:.1f} dB<br>%{customdata}<extra></extra>",
    )
    if chosen.error is not None:
        figure.add_scatter(
            x=[chosen.mean_bits], y=[decibels(chosen.error)], mode="markers", name="this model",
            marker={"symbol": "star", "size": 16, "color": "crimson"},
        )  # fmt: skip
    figure.update_layout(xaxis_title="mean activation bits", yaxis_title="latents above their error, dB", height=420)
    rows = [
        [point.mean_bits, point.predicted_error, point.rollout_error, command]
        for (point, _), command in zip(known, commands, strict=True)
    ]
    return Chart(
        title="Pareto front",
        description=f"{len(known)} policies between {front.points[0].mean_bits:.2f} and "
        f"{front.points[-1].mean_bits:.2f} mean activation bits; this model has {chosen.mean_bits:.2f}",
        figure=figure,
        table=Table(name="front", columns=("mean bits", "predicted error", "measured error", "command"), rows=rows),
    )


def steps_chart(summary: Summary) -> Chart:
    """The latents' PSNR by step; the first is left out, which both models start from."""
    values = summary.quality.per_step.latent_psnr_db[1:]
    figure = go.Figure()
    figure.add_scatter(x=list(range(1, 1 + len(values))), y=list(values), mode="lines+markers", name="PSNR")
    figure.update_layout(xaxis_title="denoising step", yaxis_title="PSNR of the latents, dB", height=340)
    return Chart(
        title="Error by step",
        description=f"PSNR of the latents falls from {max(values):.1f} to {min(values):.1f} dB"
        if values
        else "one step",
        figure=figure,
        table=Table(name="steps", columns=("step", "PSNR, dB"), rows=[[i, v] for i, v in enumerate(values, 1)]),
    )


def drawings(context: Context, summary: Summary, where: str) -> dict[str, Callable[[], Chart]]:
    """What draws each chart of the page, by its name."""
    return {
        "policy": lambda: policy_chart(context),
        "front": lambda: front_chart(context, where),
        "steps": lambda: steps_chart(summary),
    }
