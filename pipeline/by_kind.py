"""Results by kind of caption: means with 95 % intervals over captions, each the mean of its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from adatsq_pipe.pipeline.captions import NO_KIND
from adatsq_pipe.pipeline.kind_quality import Figure, KindQuality
from adatsq_pipe.pipeline.paired import LEAST_ERROR, interval
from adatsq_pipe.storage import tables


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


def _quality(kind: str, captions: Sequence[Sequence[tables.Row]]) -> KindQuality:
    scored = all("right" in row for of_caption in captions for row in of_caption)
    shares = [[statistics.fmean(row["right"]) for row in rows] for rows in captions] if scored else []
    full = [[statistics.fmean(row["reference_right"]) for row in rows] for rows in captions] if scored else []
    return KindQuality(
        kind=kind,
        captions=len(captions),
        pictures=sum(map(len, captions)),
        latent_db=figure([[_decibels(row["latent_error"]) for row in rows] for rows in captions]),
        psnr=figure([[row["psnr"] for row in rows] for rows in captions]),
        ssim=figure([[row["ssim"] for row in rows] for rows in captions]),
        score=figure(shares) if scored else None,
        score_difference=figure(
            [[a - b for a, b in zip(own, right, strict=True)] for own, right in zip(shares, full, strict=True)]
        )
        if scored
        else None,
    )


def figure(captions: Iterable[Sequence[float]]) -> Figure:
    """Of the values of each caption's seeds."""
    means = [statistics.fmean(values) for values in captions]
    return Figure(mean=statistics.fmean(means), interval=interval(means))


def _decibels(error: float) -> float:
    return -10 * math.log10(max(error, LEAST_ERROR))
