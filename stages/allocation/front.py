"""The Pareto front: how search writes it, and how later stages read the chosen policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adatsq_pipe.stages.allocation.digest import digest_of
from adatsq_pipe.stages.allocation.trellis import Trellis
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.numerics.policy import Policy

if TYPE_CHECKING:
    from adatsq_pipe.stages.numerics.beam import Beam, Choices


def write_front(context: Context, space: Trellis, beam: Beam, rollouts: Mapping[str, float]) -> None:
    """Commit the front with the even paths, and of those that were rolled out the one that led nearest."""
    from adatsq_pipe.storage import tables

    errors: dict[Choices, float | None] = {path.choices: path.error for path in beam.front if path.choices}
    errors |= {choices: None for choices in space.even if choices not in errors}
    with unit_of(context, "search", "front") as unit:
        rows = list[dict[str, Any]]()
        for choices, error in errors.items():
            rows.append(
                {
                    "digest": digest_of(choices),
                    "choices": list(choices),
                    "mean_bits": space.mean_bits(choices),
                    "mac_weighted_bits": space.mac_weighted_bits(choices),
                    "trellis_error": error,
                    "predicted_error": space.predicted(choices),
                    "rollout_error": geometric_mean(rollouts.get(digest_of(choices))),
                    "bits": [b for row in space.rounded_bits(choices) for b in row],
                }
            )
        rows += space.all_budgets()
        tables.write(unit.folder / "front.parquet", rows)
        tried = [row for row in rows if row["rollout_error"] is not None]
        best = min(tried, key=lambda row: (row["rollout_error"], row["mean_bits"], row["choices"]))
        unit.value = {
            "policy": [list(row) for row in space.policy(tuple(best["choices"])).bits],
            **{name: best[name] for name in ("mean_bits", "mac_weighted_bits", "rollout_error", "predicted_error")},
            "front": len(rows),
        }


def geometric_mean(mean_log: float | None) -> float | None:
    """The geometric mean of captions' errors."""
    return None if mean_log is None else math.exp(mean_log)


def policy_of(context: Context) -> Policy:
    """The chosen policy over all layers in survey order (16 = weight-only)."""
    marker, _ = context.read("search", "front")
    return Policy(tuple(tuple(row) for row in marker.value["policy"]))
