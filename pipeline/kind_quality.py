"""What a run measured of one kind of caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
