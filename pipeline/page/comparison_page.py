"""The page of a comparison, `compare.html`: methods side by side, in one file that opens from disk."""

from __future__ import annotations

import json
from collections.abc import Sequence

from adatsq_pipe.pipeline.compare_table import SAME_BITS, best, effective_bits, name_of, rank
from adatsq_pipe.pipeline.comparison import ROWS, Comparison, LeftOut, read_comparison
from adatsq_pipe.pipeline.notes import Notes
from adatsq_pipe.pipeline.page import gain_charts, method_pictures
from adatsq_pipe.pipeline.page.charts import Chart
from adatsq_pipe.pipeline.page.images import GAIN
from adatsq_pipe.pipeline.page.method_pictures import Draw
from adatsq_pipe.pipeline.page.render import EMBEDDED_BYTES, SMALL, embedded, html, measured, script
from adatsq_pipe.pipeline.page.tables import Cell, Table
from adatsq_pipe.storage import tables
from adatsq_pipe.storage.files import write_text
from adatsq_pipe.storage.rundir import RunDir
from adatsq_pipe.storage.tables import Row

PAGE = "compare.html"
"""Name of the page in the run directory."""
WHOLE = 1024
"""Pictures are shown at most so many pixels wide; the files beside the page are at full size."""
FORMATS = {
    "latent gain, dB": "+.2f", "gain ±": ".2f", "latent error": ".3g", "PSNR, dB": ".1f", "PSNR ±": ".1f",
    "median PSNR, dB": ".1f", "SSIM": ".3f", "LPIPS": ".3f", "CLIP score": ".2f", "prompt match": ".2f",
    "match ±": ".2f", "match - full precision": "+.2f", "difference ±": ".2f", "weights": ".2f",
    "activations": ".2f", "effective bits": ".2f", "compression": ".2f", "calibration, s": ".0f",
}  # fmt: skip
"""How the columns of the methods' table are shown."""


def write_page(run: RunDir) -> Notes:
    """Write the page and its pictures from what a comparison has left in `run`; returns what is missing, and why.

    An error costs the part that it is in. Raises StorageError where `run` holds no comparison that can be read.
    """
    comparison, notes = read_comparison(run), Notes()
    (run.path / PAGE).unlink(missing_ok=True)
    with notes.of(PAGE):
        results = tables.read(run.path / ROWS)
        shown = sorted(best(results), key=lambda row: (_place(row, results), rank(row)))
        draws = list[Draw]()
        with notes.of(method_pictures.FOLDER):
            draws = method_pictures.write_pictures(run, shown, comparison.references, notes)
        write_text(run.path / PAGE, _html(run, comparison, results, shown, draws, notes))
        run.upload(PAGE, method_pictures.FOLDER)
    return notes


def _place(row: Row, results: Sequence[Row]) -> int:
    """The place of the row's bits, in the order in which they were asked for."""
    return list(dict.fromkeys(other["bits"] for other in results)).index(row["bits"])


def _html(
    run: RunDir,
    comparison: Comparison,
    results: Sequence[Row],
    shown: Sequence[Row],
    draws: Sequence[Draw],
    notes: Notes,
) -> str:
    charts = dict[str, Chart]()
    for name, draw in {"gain": gain_charts.gain_chart, "error": gain_charts.error_chart}.items():
        if name == "gain" and all(row["latent_gain"] is None for row in shown):
            continue
        with notes.of(f"{PAGE}: {name}"):
            charts[name] = draw(shown)
    made = {
        "methods": methods_table("methods", shown),
        "left-out": left_out_table(comparison.left_out),
        "versions": Table(name="versions", columns=("what", "version"), rows=list(comparison.versions.items())),
    }
    if len(results) > len(shown):
        made["all-rows"] = methods_table("all-rows", sorted(results, key=lambda row: (_place(row, results), rank(row))))
    if not comparison.left_out:
        del made["left-out"]
    sources = _sources(run, draws)
    samples = shown[0]["captions"] * shown[0]["seeds"]
    return html(
        "compare.html.jinja", title=f"Methods on {comparison.model}", charts=charts, tables=made, comparison=comparison,
        leaders=leaders_of(shown), rows=shown, draws=draws, sources=sources, notes=dict(notes), gain=GAIN, small=SMALL,
        whole=WHOLE, samples=samples, pictures=script(json.dumps(_pictures(draws, sources))),
        groups=list(dict.fromkeys(tile.bits for tile in draws[0].tiles)) if draws else [],
    )  # fmt: skip


def leaders_of(shown: Sequence[Row]) -> list[Row]:
    """The row of the largest gain at each pair of bits, of those that are as small as the smallest there."""
    leaders = list[Row]()
    for bits in dict.fromkeys(row["bits"] for row in shown):
        own = [row for row in shown if row["bits"] == bits]
        least = min(map(effective_bits, own))
        gains = [row for row in own if row["latent_gain"] is not None and effective_bits(row) <= least + SAME_BITS]
        leaders += sorted(gains, key=rank)[:1]
    return leaders


def methods_table(name: str, rows: Sequence[Row]) -> Table:
    """The figures of every row, with 95 % intervals. Columns that no row has a value in are left out."""
    columns = ("method", "bits", *FORMATS)
    cells: list[list[Cell]] = [
        [
            name_of(row), row["bits"], row["latent_gain"], row["latent_gain_interval"], row["latent_error_geometric"],
            row["psnr"], row["psnr_interval"], row["psnr_median"], row["ssim"], row.get("lpips"), row.get("clip"),
            row["score"], row["score_interval"],
            row["score_difference"], row["score_difference_interval"], row["weight_bits"], row["activation_bits"],
            effective_bits(row), row["layers_smaller"], row["calibration_seconds"],
        ]
        for row in rows
    ]  # fmt: skip
    used = [place for place in range(len(columns)) if any(row[place] is not None for row in cells)]
    return Table(
        name=name,
        columns=[columns[place] for place in used],
        rows=[[row[place] for place in used] for row in cells],
        formats=FORMATS,
    )


def left_out_table(left_out: Sequence[LeftOut]) -> Table:
    """The rows without figures, and why."""
    rows: list[list[Cell]] = [
        [row.name, row.bits, "failed" if row.failed else "refused", row.refused] for row in left_out
    ]
    return Table(name="left-out", columns=("method", "bits", "what", "why"), rows=rows)


def _sources(run: RunDir, draws: Sequence[Draw]) -> dict[str, str]:
    """By the file of a picture: what the page shows, the picture itself while there is room, else its file."""
    room, sources = EMBEDDED_BYTES, dict[str, str]()
    for draw in draws:
        files = [draw.full, *(tile.source for tile in draw.tiles)]
        size = sum((run.path / file).stat().st_size for file in files) * 4 // 3
        whole = size <= room
        room -= size if whole else 0
        sources |= {file: embedded(run.path / file) if whole else file for file in files}
    return sources


def _pictures(draws: Sequence[Draw], sources: dict[str, str]) -> list[dict[str, object]]:
    """What the page's script shows of each draw: the pictures by the name of their place, and a line of each."""
    return [
        {
            "prompt": draw.prompt,
            "seed": draw.seed,
            "full": sources[draw.full],
            "tiles": {
                f"{tile.bits} {tile.name}": {"source": sources[tile.source], "line": measured(tile.row)}
                for tile in draw.tiles
            },
        }
        for draw in draws
    ]
