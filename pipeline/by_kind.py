"""Results by kind of caption: means with 95 % intervals over captions, each the mean of its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from adatsq_pipe.pipeline.captions import NO_KIND
from adatsq_pipe.pipeline.kind_quality import METRICS, Figure, KindQuality, Metric
from adatsq_pipe.pipeline.paired import LEAST_ERROR, interval
from adatsq_pipe.storage import tables

Captions: TypeAlias = Sequence[Sequence[tables.Row]]
"""The rows of each caption, one for each seed."""
VERDICTS = ("right", "reference_right")


def kind_of(row: tables.Row) -> str:
    """The kind of a row's caption; where captions have none, what it asks for in the built-in world; else ""."""
    return row["kind"] or NO_KIND if "kind" in row else ", ".join(row.get("tasks") or ())


def by_kind(rows: Sequence[tables.Row], captions: int) -> list[KindQuality]:
    """The figures of every kind, in the order of its first caption; none if no row has a kind.

    `rows` holds all captions with the first seed, then with the next.
    """
    members: dict[str, dict[int, list[tables.Row]]] = {}
    for place, row in enumerate(rows):
        if kind := kind_of(row):
            members.setdefault(kind, {}).setdefault(place % captions, []).append(row)
    return [_quality(kind, list(of_caption.values())) for kind, of_caption in members.items()]


def grouped(rows: Sequence[tables.Row], captions: int) -> list[list[tables.Row]]:
    """The rows of each caption, by seed. `rows` holds all captions with the first seed, then with the next."""
    return [list(rows[caption::captions]) for caption in range(captions)]


def metrics_of(captions: Captions) -> dict[str, Metric]:
    """The optional metrics that the rows have, by name."""
    return {name: _metric(name, captions) for name in METRICS if all(name in row for rows in captions for row in rows)}


def _metric(name: str, captions: Captions) -> Metric:
    own, full = _values(captions, name), _values(captions, f"{name}_full_precision")
    if not full:
        return Metric(quantized=figure(own))
    return Metric(quantized=figure(own), full_precision=figure(full), difference=figure(_minus(own, full)))


def _quality(kind: str, captions: Captions) -> KindQuality:
    shares, full = ([[statistics.fmean(v) for v in seeds] for seeds in _values(captions, n)] for n in VERDICTS)
    return KindQuality(
        kind=kind,
        captions=len(captions),
        pictures=sum(map(len, captions)),
        latent_db=figure([[_decibels(error) for error in seeds] for seeds in _values(captions, "latent_error")]),
        psnr=figure(_values(captions, "psnr")),
        ssim=figure(_values(captions, "ssim")),
        score=figure(shares) if shares else None,
        score_difference=figure(_minus(shares, full)) if shares else None,
        metrics=metrics_of(captions),
    )


def _values(captions: Captions, name: str) -> list[list[Any]]:
    """A column by caption and seed; empty if a row has none."""
    there = all(name in row for rows in captions for row in rows)
    return [[row[name] for row in rows] for rows in captions] if there else []


def _minus(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> list[list[float]]:
    pairs = zip(left, right, strict=True)
    return [[a - b for a, b in zip(own, other, strict=True)] for own, other in pairs]


def figure(captions: Iterable[Sequence[float]]) -> Figure:
    """Of the values of each caption's seeds."""
    means = [statistics.fmean(values) for values in captions]
    return Figure(mean=statistics.fmean(means), interval=interval(means))


def _decibels(error: float) -> float:
    return -10 * math.log10(max(error, LEAST_ERROR))
