"""What a run measured of one kind of caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

METRICS = {"lpips": ("LPIPS", 3), "clip": ("CLIP score", 2)}
"""Name of an optional metric for people, and digits after the point."""
SHOWN = 8
"""Kinds that a line names."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A mean over captions, each the mean of its seeds, and half its 95 % interval; None of a single caption."""

    mean: float
    interval: float | None

    def shown(self, digits: int, sign: str = "±") -> str:
        """As text, with so many digits after the point, and the sign before the interval."""
        half = "" if self.interval is None else f" {sign} {self.interval:.{digits}f}"
        return f"{self.mean:.{digits}f}{half}"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """An optional metric of the quantized pictures; where each picture has one of its own (clip), also of the
    full-precision pictures, and the paired difference, quantized minus full precision."""

    quantized: Figure
    full_precision: Figure | None = None
    difference: Figure | None = None


@dataclass(frozen=True, kw_only=True)
class KindQuality:
    """One kind of caption: quantized against full precision, on the same seeds."""

    kind: str
    captions: int
    pictures: int
    latent_db: Figure
    """-10 log10 of the latent error: decibels of the final latents above their error. Higher is nearer."""
    psnr: Figure
    """dB."""
    ssim: Figure
    score: Figure | None = None
    """Share of what the captions ask for that the quantized pictures show; None where no program can read them."""
    score_difference: Figure | None = None
    """The same minus that of the full-precision pictures of the same seeds."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """The optional metrics that were asked for."""


def score_figure(scores: Mapping[str, Any], part: str) -> Figure:
    """Of a summary's `asked_for`, the mean over tasks of a `part`: "full_precision", "quantized" or "difference".

    A task with one caption has no error, so then the mean has none either.
    """
    total = scores[part] if part == "difference" else scores[part]["total"]
    known = all(task["captions"] > 1 for task in scores["quantized"]["tasks"].values())
    return Figure(mean=total["mean"], interval=1.96 * total["standard_error"] if known else None)


def score_line(scores: Mapping[str, Any]) -> str:
    """The means over tasks of both models and of their difference, in one line."""
    full, quantized = (score_figure(scores, part).shown(3, "+-") for part in ("full_precision", "quantized"))
    difference = score_figure(scores, "difference")
    sign = "" if difference.mean < 0 else "+"
    return (
        f"pictures that show what the caption asks for: full precision {full}, quantized {quantized}, "
        f"paired difference {sign}{difference.shown(3, '+-')}"
    )


def metric_text(name: str, mean: float, interval: float | None) -> str:
    """A value of the optional metric `name` with half its interval."""
    return Figure(mean=mean, interval=interval).shown(METRICS[name][1])


def metric_line(name: str, metric: Metric) -> str:
    """An optional metric in one line."""
    title, digits = METRICS[name]
    text = f"{title} {metric.quantized.shown(digits, '+-')}"
    if metric.full_precision is None or metric.difference is None:
        return f"{text} to full precision (0: alike)"
    difference = metric.difference.shown(digits, "+-")
    return f"{text}, full precision {metric.full_precision.shown(digits, '+-')}, paired difference {difference}"


def line(kinds: Sequence[KindQuality]) -> str:
    """PSNR of the kinds in one line, the lowest first."""
    ordered = sorted(kinds, key=lambda each: each.psnr.mean)
    parts = [f"{each.kind} {each.psnr.shown(1, '+-')}" for each in ordered[:SHOWN]]
    more = f", and {len(ordered) - SHOWN} more in the report" if len(ordered) > SHOWN else ""
    return f"PSNR by kind of caption, dB: {', '.join(parts)}{more}"
