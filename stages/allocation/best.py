"""The best policy that a search has found so far, from its units alone: no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from adatsq_pipe.stages.allocation.points import Point, decibels
from adatsq_pipe.stages.allocation.trellis import WEIGHTS_ALONE, Trellis
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.storage.errors import DamagedUnit, StorageError
from adatsq_pipe.storage.fingerprint import Plain
from adatsq_pipe.storage.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Best:
    """A policy, by its mean activation bits and the relative squared error of the final latents."""

    mean_bits: float | None
    """None where what the search allocates cannot be read here."""
    error: float | None
    measured: bool
    """Whether the error was measured, or predicted to first order."""
    final: bool
    """Whether the search is done."""
    tried: int
    """Policies whose error was measured."""

    def plain(self) -> dict[str, Plain]:
        return asdict(self)

    def text(self) -> str:
        """In one line."""
        bits = "?" if self.mean_bits is None else f"{self.mean_bits:.2f}"
        error = "no error measured"
        if self.error is not None:
            how = "measured" if self.measured else "predicted"
            error = f"error {self.error:.3g} ({decibels(self.error):.1f} dB), {how}"
        so_far = "" if self.final else f"; so far, of {self.tried} tried"
        return f"{bits} mean activation bits, {error}{so_far}"


def best_of(context: Context, *, complete: bool) -> Best | None:
    """The best policy of the run's search: what it chose, or so far the nearest of those that were rolled out.

    None before anything was rolled out.
    """
    if not context.fingerprints["search"]:
        return None
    manifest = context.manifest("search")
    units = list(manifest.units())
    errors = _rolled_out(manifest, [unit for unit in units if unit.startswith("rollout/")])
    if "front" in units:
        try:
            point = Point.of(manifest.read("front").value)
        except (DamagedUnit, KeyError):
            return None
        measured = point.rollout_error is not None
        return Best(mean_bits=point.mean_bits, error=point.error, measured=measured, final=complete, tried=len(errors))
    if not errors:
        return None
    choices = min(errors, key=lambda path: errors[path])
    return Best(
        mean_bits=_mean_bits(context, choices), error=errors[choices], measured=True, final=False, tried=len(errors)
    )


def _rolled_out(manifest: Manifest, units: list[str]) -> dict[tuple[int, ...], float]:
    """Errors by path, over the captions that are done; weights alone are no policy."""
    parts = dict[tuple[int, ...], list[Mapping[str, Any]]]()
    for unit in units:
        try:
            value = manifest.read(unit).value
        except (DamagedUnit, KeyError):
            continue
        choices = tuple(value["choices"])
        if set(choices) != {WEIGHTS_ALONE}:
            parts.setdefault(choices, []).append(value)
    return {
        choices: math.exp(sum(v["error"] * v["samples"] for v in values) / sum(v["samples"] for v in values))
        for choices, values in parts.items()
    }


def _mean_bits(context: Context, choices: tuple[int, ...]) -> float | None:
    try:
        return Trellis(context).mean_bits(choices)
    except (StorageError, ValueError, KeyError, IndexError):
        return None
