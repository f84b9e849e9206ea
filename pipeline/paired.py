"""Paired figures: by how much one row is nearer to full precision than another on the same captions and seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from adatsq_pipe.storage import tables

LEAST_ERROR = 1e-30
"""What a latent error counts as at least, as in `numerics.metrics.mean_log_error`."""
BASELINES = ("adatsq", "rtn")
"""Methods, as published, that latent gains are over: the first that has a row at the same bits."""
ROUNDING = "rtn"
DECIBELS = 10 / math.log(10)
"""Decibels to a unit of the natural logarithm."""


def by_caption(values: Sequence[float], captions: int) -> list[float]:
    """Means over the seeds of each caption. `values` holds all captions with the first seed, then with the next."""
    return [statistics.fmean(values[caption::captions]) for caption in range(captions)]


def paired_columns(pictures: Sequence[tables.Row], captions: int) -> tables.Row:
    """What pairing needs of a row's draws (`psnr`, `latent_error`; in the order of `by_caption`), and the row's own
    figures that outliers do not decide."""
    psnr = [picture["psnr"] for picture in pictures]
    logs = by_caption([math.log(max(picture["latent_error"], LEAST_ERROR)) for picture in pictures], captions)
    return {
        "psnr_median": statistics.median(psnr),
        "psnr_by_caption": by_caption(psnr, captions),
        "latent_error_geometric": math.exp(statistics.fmean(logs)),
        "latent_log_by_caption": logs,
    }


def interval(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of the mean of `values`, one of each caption; None if there is a single one."""
    return 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def with_gains(results: Sequence[tables.Row]) -> list[tables.Row]:
    """The rows with their gains over a baseline at the same bits and 95 % intervals, paired by caption.

    `latent_gain` is 10 log10 of the baseline's latent error over the row's, in dB, averaged over draws; it is over
    `latent_gain_over`, whose own is 0. `psnr_over_rtn`, in dB, is over rounding to nearest, whose own is None. Both are
    None where the rows have no baseline.
    """
    return [{**row, **_latent_gain(row, results), **_psnr_over_rtn(row, results)} for row in results]


def is_baseline(row: tables.Row) -> bool:
    """Whether latent gains at these bits are over this row."""
    return bool(row["method"] == row["latent_gain_over"] and row["change"] == "{}")


def _published(method: str, row: tables.Row, results: Sequence[tables.Row]) -> tables.Row | None:
    """The row of the method as published at the same bits as `row`."""
    same = (r for r in results if (r["method"], r["change"], r["bits"]) == (method, "{}", row["bits"]))
    return next(same, None)


def _latent_gain(row: tables.Row, results: Sequence[tables.Row]) -> tables.Row:
    baselines = (_published(method, row, results) for method in BASELINES)
    baseline = next((b for b in baselines if b is not None), None)
    if baseline is None or len(baseline["latent_log_by_caption"]) != len(row["latent_log_by_caption"]):
        return dict.fromkeys(("latent_gain", "latent_gain_interval", "latent_gain_over"))
    pairs = zip(baseline["latent_log_by_caption"], row["latent_log_by_caption"], strict=True)
    gains = [DECIBELS * (other - own) for other, own in pairs]
    return {
        "latent_gain": statistics.fmean(gains),
        "latent_gain_interval": interval(gains),
        "latent_gain_over": baseline["method"],
    }


def _psnr_over_rtn(row: tables.Row, results: Sequence[tables.Row]) -> tables.Row:
    floor = _published(ROUNDING, row, results)
    if floor is None or floor is row or len(floor["psnr_by_caption"]) != len(row["psnr_by_caption"]):
        return dict.fromkeys(("psnr_over_rtn", "psnr_over_rtn_interval"))
    gains = [own - other for own, other in zip(row["psnr_by_caption"], floor["psnr_by_caption"], strict=True)]
    return {"psnr_over_rtn": statistics.fmean(gains), "psnr_over_rtn_interval": interval(gains) or 0.0}
