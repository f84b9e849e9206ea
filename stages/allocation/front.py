"""The Pareto front: how search writes it, and how later stages read the policy of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adatsq_pipe.stages.allocation.digest import digest_of
from adatsq_pipe.stages.allocation.points import FILE, AssembleSettings, point_of
from adatsq_pipe.stages.allocation.trellis import Trellis
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, Policy

if TYPE_CHECKING:
    from adatsq_pipe.stages.numerics.beam import Beam, Choices


def write_front(context: Context, space: Trellis, beam: Beam, rollouts: Mapping[str, float]) -> None:
    """Commit the front with the even paths, and of those that were rolled out the one that led nearest.

    A predicted error is that of the weights alone, measured, and what the activations add, to first order: the errors
    are independent, so their squares add up.
    """
    from adatsq_pipe.storage import tables  # imports pyarrow

    errors: dict[Choices, float | None] = {path.choices: path.error for path in beam.front if path.choices}
    errors |= {choices: None for choices in space.even if choices not in errors}
    weights_error = None if space.costs is None else geometric_mean(rollouts[digest_of(space.weights_alone)])

    def total(added: float | None) -> float | None:
        return None if added is None or weights_error is None else weights_error + added

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
                    "predicted_error": total(space.predicted(choices)),
                    "rollout_error": geometric_mean(rollouts.get(digest_of(choices))),
                    "bits": [b for row in space.rounded_bits(choices) for b in row],
                }
            )
        known = {tuple(row["bits"]) for row in rows}
        for row in space.all_budgets():
            if tuple(row["bits"]) not in known:
                known.add(tuple(row["bits"]))
                rows.append({**row, "predicted_error": total(row["predicted_error"])})
        tables.write(unit.folder / FILE, rows)
        tried = [row for row in rows if row["rollout_error"] is not None]
        best = min(tried, key=lambda row: (row["rollout_error"], row["mean_bits"], row["choices"]))
        unit.value = {
            "policy": [list(row) for row in space.policy(tuple(best["choices"])).bits],
            **{name: best[name] for name in ("mean_bits", "mac_weighted_bits", "rollout_error", "predicted_error")},
            "front": len(rows),
            **({} if weights_error is None else {"weights_error": weights_error}),
        }


def geometric_mean(mean_log: float | None) -> float | None:
    """The geometric mean of captions' errors."""
    return None if mean_log is None else math.exp(mean_log)


def policy_of(context: Context) -> Policy:
    """The policy of the run's model over all layers in survey order (16 = weight-only): what search chose, or the
    point of the front that `assemble.mean_bits` names."""
    policy = context.read("search", "front")[0].value["policy"]
    if context.settings[AssembleSettings].mean_bits:
        bits = iter(point_of(context).bits)
        policy = [[WEIGHT_ONLY if b == WEIGHT_ONLY else next(bits) for b in row] for row in policy]
    return Policy(tuple(tuple(row) for row in policy))
