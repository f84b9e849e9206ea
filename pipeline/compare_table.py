"""The tables and the plot of `compare`: the best of each method, the nearest to full precision first."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from adatsq_pipe.pipeline.kind_quality import METRICS, metric_text
from adatsq_pipe.pipeline.notes import Notes
from adatsq_pipe.pipeline.paired import DECIBELS, interval, is_baseline, with_gains
from adatsq_pipe.pipeline.plots.figures import pyplot
from adatsq_pipe.storage import tables
from adatsq_pipe.storage.files import write_text
from adatsq_pipe.storage.rundir import RunDir

SAME_BITS = 0.25
"""Rows of a method whose weights differ by no more are one choice of its knob; others are different sizes."""


ABLATED = ("adatsq", "endpoint")
"""Methods whose changes are ablations, each a row of its own."""


def best(results: Sequence[tables.Row]) -> list[tables.Row]:
    """Of every method at every pair of bits, the change of least geometric mean latent error, in the order of the rows.

    Changes that make the model larger or smaller than the method as published stay, and so do the ablations of
    AdaTSQ and endpoint.
    """
    chosen: dict[tuple[str, str, str], tables.Row] = {}
    published = {(row["bits"], row["method"]): row["weight_bits"] for row in results if row["change"] == "{}"}
    for row in results:
        size = published.get((row["bits"], row["method"]), row["weight_bits"])
        apart = row["method"] in ABLATED or abs(row["weight_bits"] - size) > SAME_BITS
        key = (row["bits"], row["method"], row["change"] if apart else "")
        if key not in chosen or row["latent_error_geometric"] < chosen[key]["latent_error_geometric"]:
            chosen[key] = row
    return list(chosen.values())


COLUMNS = (
    "method",
    "weights",
    "activations",
    "compression",
    "latent gain, dB",
    "latent error",
    "PSNR, dB",
    "median",
    "SSIM",
    "prompt match",
    "difference",
    "calibration",
)


class LeftOut(Protocol):
    """A row that has no figures, and why."""

    @property
    def name(self) -> str: ...
    @property
    def bits(self) -> str: ...
    @property
    def refused(self) -> str: ...


def name_of(row: tables.Row) -> str:
    """The row's method, with what differs from the method as published."""
    change = ", ".join(f"{key}={value}" for key, value in json.loads(row["change"]).items())
    return f"{row['method']} ({change})" if change else str(row["method"])


def columns(row: tables.Row) -> list[str]:
    """Names of the columns of a row's table: COLUMNS, and after SSIM the optional metrics that it has."""
    after = COLUMNS.index("SSIM") + 1
    return [*COLUMNS[:after], *(METRICS[name][0] for name in METRICS if name in row), *COLUMNS[after:]]


def cells(row: tables.Row) -> list[str]:
    """A row of the table, as text. Bits above what the row's label says are shown with a sign."""
    score, difference = "", ""
    if row["score"] is not None:
        score = _with_interval(row, "score", ".2f")
        difference = _with_interval(row, "score_difference", "+.2f")
    return [
        name_of(row),
        f"{row['weight_bits']:.2f} ({row['weight_bits_over']:+.2f})",
        f"{row['activation_bits']:.2f} ({row['activation_bits_over']:+.2f})",
        f"{row['layers_smaller']:.2f}x",
        _gain(row),
        f"{row['latent_error_geometric']:.3g}",
        _with_interval(row, "psnr", ".1f"),
        f"{row['psnr_median']:.1f}",
        f"{row['ssim']:.3f}",
        *(metric_text(name, row[name], row[f"{name}_interval"]) for name in METRICS if name in row),
        score,
        difference,
        f"{row['calibration_seconds']:.0f} s",
    ]


def _gain(row: tables.Row) -> str:
    """The latent gain with its interval."""
    if row["latent_gain"] is None:
        return ""
    if is_baseline(row):
        return "0 (baseline)"
    return _with_interval(row, "latent_gain", "+.2f")


def _with_interval(row: tables.Row, name: str, form: str) -> str:
    """A figure with its interval, which one caption does not have."""
    half = row[f"{name}_interval"]
    return f"{row[name]:{form}}" + ("" if half is None else f" ± {half:{form.removeprefix('+')}}")


def markdown(results: Sequence[tables.Row], refused: Sequence[LeftOut], model: str, floor: str = "") -> str:
    """The tables of `compare.md`, one for each pair of bits; below them the line on the `floor`, and what is not there.

    Rows are sorted by latent gain. Those without one follow, by PSNR.
    """
    lines = [f"# Methods on {model}", ""]
    if results:
        first = results[0]
        score = f"; full precision matches the prompt in {first['full_precision_score']:.2f}" if first["score"] else ""
        lines += [
            f"{first['captions']} held-out captions x {first['seeds']} paired seeds, 95 % intervals{score}. "
            "Latent errors are geometric means over draws, relative to full precision; PSNR is to full precision. "
            "Compression is of the quantized layers, against bfloat16.",
            "",
        ]
    for bits in dict.fromkeys(row["bits"] for row in results):
        own = [row for row in results if row["bits"] == bits]
        over = next((row["latent_gain_over"] for row in own if row["latent_gain_over"]), None)
        suffix = f": latent gain over {over} as published" if over else ": no latent gain without adatsq or rtn"
        lines += [f"## {bits}{suffix}", "", f"| {' | '.join(columns(own[0]))} |"]
        lines.append("|---" * len(columns(own[0])) + "|")
        lines += [f"| {' | '.join(cells(row))} |" for row in sorted(own, key=rank)]
        lines.append("")
    lines += [floor, ""] if floor else []
    lines += [f"- {row.name} at {row.bits} was left out: {row.refused}" for row in refused]
    return "\n".join(lines).rstrip() + "\n"


def rank(row: tables.Row) -> tuple[bool, float]:
    """Sorts rows at the same bits: by latent gain, then those without one by PSNR."""
    gain = row["latent_gain"]
    return gain is None, -row["psnr"] if gain is None else -gain


def decibels(row: tables.Row) -> float:
    """-10 log10 of the row's latent error (geometric mean): higher is nearer to full precision."""
    return -10 * math.log10(row["latent_error_geometric"])


Figure = Callable[[tables.Row], float]
PLOT = "compare.png"


def plot(results: Sequence[tables.Row], path: Path) -> None:
    """Latent error in dB and score against effective bits (mean of weights' and activations'), with the Pareto line."""
    plt = pyplot()
    panels: list[tuple[Figure, Figure, str]] = [(decibels, decibels_interval, "-10 log10 of the latent error, dB")]
    if any(row["score"] is not None for row in results):
        label = "share that matches the prompt"
        panels.append((lambda row: row["score"], lambda row: row["score_interval"] or 0.0, label))
    figure, axes = plt.subplots(1, len(panels), figsize=(6.2 * len(panels), 4.4), squeeze=False)
    names = list(dict.fromkeys(row["method"] for row in results))
    for axis, (height, width, label) in zip(axes[0], panels, strict=True):
        for i, name in enumerate(names):
            own = [row for row in results if row["method"] == name]
            axis.errorbar(
                [effective_bits(row) for row in own],
                [height(row) for row in own],
                [width(row) for row in own],
                fmt="o^sDvP*X<>"[i % 10],
                color=f"C{i % 10}",
                capsize=2,
                elinewidth=0.7,
                label=name,
            )
        line = list(front_of_rows(results, height))
        axis.plot([effective_bits(row) for row in line], [height(row) for row in line], color="0.6", lw=1, zorder=0)
        axis.set_xlabel("mean of effective weight and activation bits")
        axis.set_ylabel(label)
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def decibels_interval(row: tables.Row) -> float:
    """Half the 95 % interval of `decibels`; 0 of a single caption."""
    return DECIBELS * (interval(row["latent_log_by_caption"]) or 0.0)


def effective_bits(row: tables.Row) -> float:
    """The mean of a row's effective weight and activation bits."""
    return float(row["weight_bits"] + row["activation_bits"]) / 2


def front_of_rows(results: Sequence[tables.Row], height: Figure) -> Iterator[tables.Row]:
    """Rows that no other beats with as few bits, by rising bits."""
    most = float("-inf")
    for row in sorted(results, key=lambda row: (effective_bits(row), -height(row))):
        if height(row) > most:
            most = height(row)
            yield row


def write(results: Sequence[tables.Row], refused: Sequence[LeftOut], run: RunDir, model: str, floor: str = "") -> Notes:
    """compare.parquet (all rows), compare.md (the best of each method) and compare.png, in the run directory.

    Returns why the plot is missing, if it could not be drawn.
    """
    notes = Notes()
    if not results:
        return notes
    results = with_gains(results)
    tables.write(run.path / "compare.parquet", [dict(row) for row in results])
    write_text(run.path / "compare.md", markdown(best(results), refused, model, floor))
    with notes.of(PLOT):
        plot(best(results), run.path / PLOT)
    if notes:
        (run.path / PLOT).unlink(missing_ok=True)
    run.upload("compare.parquet", "compare.md", *([] if notes else [PLOT]))
    return notes
