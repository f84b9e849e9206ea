"""The plots of a comparison, by plotly: gain and latent error against bits, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from adatsq_pipe.pipeline.compare_table import decibels, decibels_interval, effective_bits, front_of_rows, name_of
from adatsq_pipe.pipeline.page.charts import Chart
from adatsq_pipe.pipeline.page.tables import Table
from adatsq_pipe.storage.tables import Row

APART = 0.024
"""Bits by which points of nearly the same bits are drawn beside each other."""
MARGIN = 0.3
"""Bits that the axis shows beyond the points."""
COLOURS = ("#e4572e", "#2e86de", "#1a9850", "#9b5de5", "#c98a00", "#00a6a6", "#d6398b", "#7a8b99", "#8c6d46", "#5f6caf")
SYMBOLS = (
    "circle",
    "diamond",
    "square",
    "triangle-up",
    "triangle-down",
    "cross",
    "x",
    "star",
    "hexagon",
    "pentagon",
    "bowtie",
)
BITS = "mean of effective weight and activation bits"


def gain_chart(rows: Sequence[Row]) -> Chart:
    """Latent gain of every row over the baseline at the same bits. Raises ValueError if no row has one."""
    known = [row for row in rows if row["latent_gain"] is not None]
    if not known:
        raise ValueError("no row has a latent gain: neither adatsq nor rtn is among the methods")
    over = ", ".join(dict.fromkeys(row["latent_gain_over"] for row in known))
    figure = _scattered(known, lambda row: row["latent_gain"], lambda row: row["latent_gain_interval"] or 0.0)
    figure.update_layout(yaxis_title=f"latent gain over {over}, dB")
    return Chart(
        title="Gain against bits",
        description=f"Latent gain of {len(known)} rows over {over} at the same bits, with 95 % intervals; points of "
        "nearly the same bits stand beside each other",
        figure=figure,
        table=Table(
            name="gain",
            columns=("method", "bits", "effective bits", "latent gain, dB", "gain ±", "over"),
            rows=[
                [
                    name_of(r),
                    r["bits"],
                    effective_bits(r),
                    r["latent_gain"],
                    r["latent_gain_interval"],
                    r["latent_gain_over"],
                ]
                for r in known
            ],
        ),
    )


def error_chart(rows: Sequence[Row]) -> Chart:
    """-10 log10 of the latent error of every row, with the line of those that nothing beats with as few bits."""
    figure = _scattered(rows, decibels, decibels_interval)
    places = _beside(rows)
    front = [(places[rows.index(row)], decibels(row)) for row in front_of_rows(rows, decibels)]
    figure.add_scatter(
        x=[place for place, _ in front], y=[height for _, height in front], mode="lines", hoverinfo="skip",
        name="nothing better with as few bits", line={"color": "#8a8a96", "dash": "dot", "width": 1.5},
    )  # fmt: skip
    figure.update_layout(yaxis_title="-10 log10 of the latent error, dB")
    return Chart(
        title="Error against bits",
        description=f"How near {len(rows)} rows are to full precision, from {min(map(decibels, rows)):.1f} to "
        f"{max(map(decibels, rows)):.1f} dB, with 95 % intervals",
        figure=figure,
        table=Table(
            name="error",
            columns=("method", "bits", "effective bits", "latent error, dB", "error ±"),
            rows=[[name_of(r), r["bits"], effective_bits(r), decibels(r), decibels_interval(r)] for r in rows],
        ),
    )


def _scattered(rows: Sequence[Row], height: Callable[[Row], float], half: Callable[[Row], float]) -> go.Figure:
    """A point with its interval for every row, a colour and a symbol for every method."""
    places = _beside(rows)
    figure = go.Figure()
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [i for i, row in enumerate(rows) if row["method"] == method]
        colour = COLOURS[number % len(COLOURS)]
        figure.add_scatter(
            x=[places[i] for i in own],
            y=[height(rows[i]) for i in own],
            error_y={"array": [half(rows[i]) for i in own], "thickness": 1.2, "width": 3, "color": colour},
            customdata=[[name_of(rows[i]), rows[i]["bits"], effective_bits(rows[i]), half(rows[i])] for i in own],
            mode="markers",
            name=method,
            marker={"size": 10, "color": colour, "symbol": SYMBOLS[number % len(SYMBOLS)]},
            hovertemplate="%{customdata[0]}, %{customdata[1]}<br>%{y:.2f} ± %{customdata[3]:.2f} dB at "
            "%{customdata[2]:.2f} bits<extra></extra>",
        )
    ends = [min(places.values()) - MARGIN, max(places.values()) + MARGIN]
    figure.update_layout(xaxis={"title": BITS, "range": ends, "tickformat": ".2~f"}, height=520)
    return figure


def _beside(rows: Sequence[Row]) -> dict[int, float]:
    """Where each row is drawn: at its bits, and those that would cover each other APART, around their mean."""
    order = sorted(range(len(rows)), key=lambda i: effective_bits(rows[i]))
    groups = list[list[int]]()
    for i in order:
        near = groups and effective_bits(rows[i]) - effective_bits(rows[groups[-1][-1]]) < APART
        if near:
            groups[-1].append(i)
        else:
            groups.append([i])
    places = dict[int, float]()
    for group in groups:
        middle = sum(effective_bits(rows[i]) for i in group) / len(group)
        for place, i in enumerate(sorted(group)):
            places[i] = effective_bits(rows[i]) if len(group) == 1 else middle + APART * (place - (len(group) - 1) / 2)
    return places
