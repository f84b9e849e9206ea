"""Policies of one width a step for the whole model: the rows of one, and how search commits it."""

from __future__ import annotations

from collections.abc import Sequence

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.survey import Survey
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY


def rounded_layers(survey: Survey) -> list[list[int]]:
    """At every step, the layers that are used and have activation bits, by their place in the survey."""
    used = {i: set(survey.steps_of(row)) for i, row in enumerate(survey.layers) if row.rounded}
    return [[i for i, steps in used.items() if t in steps] for t in range(survey.steps)]


def row_of(survey: Survey, here: Sequence[int], bits: int) -> list[int]:
    """Bits of all layers at a step: `bits` of the layers `here`, 16 of the others."""
    row = [WEIGHT_ONLY] * len(survey.layers)
    for i in here:
        row[i] = bits
    return row


def write_policy(context: Context, survey: Survey, bits_T: Sequence[int], rollout_error: float | None) -> None:
    """Commit the policy with `bits_T[step]` for every rounded layer as the unit `front`.

    In the mean bits a step at 16 counts as 16.
    """
    rounded = rounded_layers(survey)
    macs_T = [sum(survey.layers[i].macs or 0 for i in here) for here in rounded]
    with unit_of(context, "search", "front") as unit:
        unit.value = {
            "policy": [row_of(survey, here, bits) for here, bits in zip(rounded, bits_T, strict=True)],
            "mean_bits": mean_bits(bits_T, [len(here) for here in rounded]),
            "mac_weighted_bits": mean_bits(bits_T, macs_T),
            "rollout_error": rollout_error,
            "front": 1,
        }


def mean_bits(bits_T: Sequence[int], weights_T: Sequence[int]) -> float:
    """The mean of the steps' bits, each step weighted by its layers (or their multiply-accumulates)."""
    return sum(b * w for b, w in zip(bits_T, weights_T, strict=True)) / (sum(weights_T) or 1)
