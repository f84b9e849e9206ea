"""The page as HTML: a template, the charts' library and the data in one file, from which no request leaves."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from adatsq_pipe.pipeline.compare_table import name_of
from adatsq_pipe.pipeline.kind_quality import METRICS
from adatsq_pipe.pipeline.page.charts import Chart
from adatsq_pipe.pipeline.page.images import GAIN, Pair
from adatsq_pipe.pipeline.page.tables import Table
from adatsq_pipe.pipeline.summary import PAGE, Summary
from adatsq_pipe.stages.base.compression import resized
from adatsq_pipe.storage.tables import Row

EMBEDDED_BYTES = 3_500_000
"""Pictures of so many bytes are in the file, the others beside it: with the charts' library it stays below 10 MB."""
WORST = 3
OF_A_KIND = 4
"""At most so many pairs of a kind of caption are on the page; the table names the files of all."""
KINDS = 20
"""At most so many kinds of captions have pairs on the page."""
SMALL = 256
"""Pictures smaller than so many pixels are enlarged, with their pixels kept apart."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page shows of a run. `notes` says what is missing and why."""

    summary: Summary
    pairs: Sequence[Pair]
    charts: Mapping[str, Chart]
    tables: Mapping[str, Table]
    facts: Sequence[tuple[str, str]]
    configuration: str
    notes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class View:
    """A pair as the template shows it."""

    pair: Pair
    sources: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pairs below one heading."""

    title: str
    views: Sequence[View]


def write(page: Page, report: Path) -> Path:
    """Write the page into the folder `report`, which has its pictures; returns its path."""
    groups = _groups(page.pairs, report)
    text = html(
        "report.html.jinja", title=page.summary.title, charts=page.charts, tables=page.tables,
        summary=page.summary, text=page.summary.text_encoders,
        groups=groups, facts=page.facts, notes=page.notes, configuration=page.configuration,
        gain=GAIN, small=SMALL, metrics=METRICS, duration=_duration(page.summary),
        left_out=len(page.pairs) - sum(len(group.views) for group in groups),
    )  # fmt: skip
    path = report / PAGE
    path.write_text(text, encoding="utf-8")
    return path


def html(
    template: str, *, title: str, charts: Mapping[str, Chart], tables: Mapping[str, Table], **values: object
) -> str:
    """The page that a template makes of its charts and tables, which it names, and of other `values`."""
    figures = {
        name: {"title": c.title, "description": c.description, "figure": script(c.figure.to_json())}
        for name, c in charts.items()
    }
    data = {name: table.plain() for name, table in [*tables.items(), *((n, c.table) for n, c in charts.items())]}
    return _environment().get_template(template).render(
        title=title, charts=figures, tables=tables, library=Markup(get_plotlyjs()), data=script(json.dumps(data)),
        **values,
    )  # fmt: skip


@cache
def _environment() -> Environment:
    """Where the templates are, and how they show values. It keeps those that it has compiled."""
    environment = Environment(
        loader=PackageLoader("adatsq_pipe.pipeline.page", "templates"), autoescape=select_autoescape(default=True),
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"method": name_of, "measured": measured, "resized": resized}
    return environment


def compile_templates() -> None:
    """Compile the templates of all pages, which take them as they are then."""
    for name in _environment().list_templates(filter_func=lambda name: name.endswith(".html.jinja")):
        _environment().get_template(name)


def _groups(pairs: Sequence[Pair], report: Path) -> list[Group]:
    """The worst pairs first, then some of every kind of caption; pictures are embedded while there is room."""
    ordered = sorted(pairs, key=lambda pair: -pair.row["latent_error"])
    kinds: dict[str, list[Pair]] = {pair.kind: [] for pair in pairs}
    for pair in pairs:
        if pair not in ordered[:WORST]:
            kinds[pair.kind].append(pair)
    room = EMBEDDED_BYTES

    def view(pair: Pair) -> View:
        nonlocal room
        paths = {"full": pair.full, "quantized": pair.quantized, "difference": pair.difference}
        size = sum((report / path).stat().st_size for path in paths.values()) * 4 // 3
        if size <= room:
            room -= size
            paths = {name: embedded(report / path) for name, path in paths.items()}
        return View(pair=pair, sources=paths)

    some = [(kind or "captions", ones[:OF_A_KIND]) for kind, ones in list(kinds.items())[:KINDS]]
    chosen = [("the worst", ordered[:WORST]), *some]
    return [Group(title=title, views=[view(pair) for pair in members]) for title, members in chosen if members]


def embedded(path: Path) -> str:
    """A picture file as a URL that holds it."""
    kind = path.suffix.removeprefix(".")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def measured(sample: Row) -> str:
    """What was measured of one picture, in a line."""
    return f"PSNR {sample['psnr']:.1f} dB, SSIM {sample['ssim']:.3f}"


def script(text: str) -> Markup:
    """JSON that may stand in a script element, whatever captions hold."""
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _duration(summary: Summary) -> str:
    """Wall time of all stages, in the unit that fits."""
    seconds = sum(parts["wall"] for parts in summary.seconds.values())
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
