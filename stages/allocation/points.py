"""The points of the front: the policies that search found, and which of them a model gets.

Without a choice a model has the policy that search chose. `[assemble] mean_bits` takes another one from the front of a
lagrangian allocation, so that a run has models of several sizes after one search. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field

from adatsq_pipe.stages.allocation.trellis import SearchSettings, widths_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import Settings
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY
from adatsq_pipe.storage.fingerprint import Plain

FILE = "front.parquet"
TOLERANCE = 1e-9
"""Mean bits are sums of whole numbers: what is above a bound by less is at the bound."""


class AssembleSettings(Settings):
    """[assemble]"""

    table: ClassVar[str] = "assemble"

    mean_bits: float = Field(default=0.0, ge=0, le=16)
    """Mean activation bits of the model: its policy is the point of the search's front with the most bits, up to this
    many. 0 = the policy that the search chose. `adatsq-pipe pick` sets it. It needs a lagrangian allocation."""

    def identity(self) -> dict[str, Plain]:
        """Nothing at 0, as before there was a choice."""
        return super().identity() if self.mean_bits else {}


def check_mean_bits(settings: RunSettings) -> None:
    """Raise StageError if assemble.mean_bits names a point that the search's front cannot have."""
    wanted, allocation = settings[AssembleSettings].mean_bits, settings[Recipe].allocation
    if not wanted:
        return
    if allocation != "lagrangian":
        raise StageError(
            f"assemble.mean_bits is {wanted:g}, and recipe.allocation = '{allocation}' has no front of many budgets to "
            "take it from; set assemble.mean_bits=0"
        )
    if wanted < (least := widths_of(settings[SearchSettings], allocation)[0]) - TOLERANCE:
        raise StageError(
            f"assemble.mean_bits is {wanted:g}, below the fewest bits of the search's front, {least}; raise it, or set "
            "search.bits with a smaller width"
        )


@dataclass(frozen=True, kw_only=True)
class Point:
    """A policy of the front, and what it costs."""

    mean_bits: float
    mac_weighted_bits: float
    predicted_error: float | None
    """Relative squared error of the final latents, to first order; None where only steps were measured."""
    rollout_error: float | None
    """The same, measured; None for what was not rolled out."""
    bits: tuple[int, ...] = field(default=(), repr=False)
    """Of the rounded layers, one step after the other; empty of a search that keeps a single policy."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Point:
        """The point of a row of the front, or of the value of search's unit `front`."""
        return cls(
            mean_bits=row["mean_bits"],
            mac_weighted_bits=row["mac_weighted_bits"],
            predicted_error=row.get("predicted_error"),
            rollout_error=row.get("rollout_error"),
            bits=tuple(row.get("bits", ())),
        )

    @property
    def error(self) -> float | None:
        """Measured, or predicted of what was not rolled out."""
        return self.predicted_error if self.rollout_error is None else self.rollout_error


@dataclass(frozen=True, kw_only=True)
class Front:
    """The points of a run by rising mean bits; of equal bits the nearer first."""

    points: tuple[Point, ...]
    chosen: Point
    """What search chose."""
    weights_error: float | None
    """Relative squared error of the final latents with rounded weights alone."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], value: Mapping[str, Any]) -> Front:
        """The front of the rows of front.parquet and the value of search's unit `front`."""
        points = sorted((Point.of(row) for row in rows), key=lambda p: (p.mean_bits, p.error or 0.0))
        own = tuple(b for row in value["policy"] for b in row if b != WEIGHT_ONLY)
        return cls(
            points=tuple(points),
            chosen=next(point for point in points if point.bits == own),
            weights_error=value.get("weights_error"),
        )

    def at_mean_bits(self, bound: float) -> Point:
        """The point with the most mean bits up to `bound`. Raises ValueError if all have more."""
        inside = [point for point in self.points if point.mean_bits <= bound + TOLERANCE]
        if not inside:
            fewest = self.points[0].mean_bits
            raise ValueError(f"no point of the front has {bound:g} mean bits or fewer; the fewest are {fewest:.4g}")
        return next(point for point in inside if point.mean_bits >= inside[-1].mean_bits - TOLERANCE)

    def within_error(self, limit: float) -> Point:
        """The point of fewest mean bits whose error is at most `limit`: measured, or else predicted.

        If search rolled its choice out and that misses the limit, no prediction for fewer bits is believed.
        Raises ValueError if no point meets it, or none has a prediction.
        """
        known = [(point.error, point) for point in self.points if point.error is not None]
        if all(point.predicted_error is None for point in self.points):
            raise ValueError(
                "the front has no predicted errors, because the pipeline's loop could not be differentiated; choose a "
                "point by its mean bits"
            )
        missed = self.chosen.rollout_error is not None and self.chosen.rollout_error > limit
        least = self.chosen.mean_bits if missed else 0.0
        for error, point in known:
            if error <= limit and (point.mean_bits > least or point.rollout_error is not None):
                return point
        error, best = min(known, key=lambda pair: pair[0])
        raise ValueError(
            f"no point of the front has an error of {limit:.3g} ({decibels(limit):.1f} dB) or less; the least is "
            f"{error:.3g} ({decibels(error):.1f} dB) at {best.mean_bits:.2f} mean bits"
        )

    def bound_of(self, point: Point) -> float:
        """The shortest number that names the point as `assemble.mean_bits`; 0 for what search chose."""
        if point == self.chosen:
            return 0.0
        for digits in range(1, 16):
            scale = float(10**digits)
            bound = math.ceil(round(point.mean_bits * scale, 6)) / scale
            if self.at_mean_bits(bound) == point:
                return bound
        return point.mean_bits


def decibels(error: float) -> float:
    """-10 log10 of a relative squared error."""
    return -10 * math.log10(max(error, 1e-30))


def front_of(context: Context) -> Front:
    """The front of a lagrangian allocation. Raises StageError for a search that keeps no front of many budgets."""
    from adatsq_pipe.storage import tables  # imports pyarrow

    marker, folder = context.read("search", "front")
    if context.settings[Recipe].allocation != "lagrangian":
        raise StageError(f"recipe.allocation = '{context.settings[Recipe].allocation}' keeps no front of many budgets")
    return Front.of(tables.read(folder / FILE), marker.value)


def point_of(context: Context) -> Point:
    """The point that the run's model has: what search chose, or what `assemble.mean_bits` takes from the front."""
    bound = context.settings[AssembleSettings].mean_bits
    if not bound:
        return Point.of(context.read("search", "front")[0].value)
    try:
        return front_of(context).at_mean_bits(bound)
    except ValueError as error:
        raise StageError(f"assemble.mean_bits: {error}") from None
