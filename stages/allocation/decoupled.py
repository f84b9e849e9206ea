"""Activation bits by layer, the same at every timestep, decoupled by kind of layer (ViDiT-Q, 2406.02540, sec. 4.3).

A layer's sensitivity is the error of the denoiser's output when this layer's activations alone are rounded. Layers of
one kind are ranked among themselves and share the budget of mean bits, so that kinds whose errors are small in this
measure are not robbed. Units of the search stage: `sensitivity/<layer's place>`, and `front`.
"""

from __future__ import annotations

from collections.abc import Sequence

from adatsq_pipe.stages.allocation.trellis import SearchSettings, widths_of
from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.base.units import fan_out, unit_of
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, Policy, allocate_greedily

CONDITIONED = ("attn2", "add_q", "add_k", "add_v", "add_out", "context", "caption", "text", "encoder_hidden")
ATTENTION = ("attn", "attention", "to_q", "to_k", "to_v", "to_out")


WORKER = WorkerRef(stage="search", path="adatsq_pipe.stages.allocation.decoupled_worker:Sensitivity")


def kind_of(name: str) -> str:
    """What a layer mainly affects: it sees the condition, it is other attention, or neither. By the names in use."""
    if any(part in name for part in CONDITIONED):
        return "condition"
    return "attention" if any(part in name for part in ATTENTION) else "rest"


def allocate(context: Context, executor: Executor, report: Report) -> None:
    """Measure every layer, spend the budget inside each kind, and commit the policy as the stage's `front`."""

    settings, survey = context.settings[SearchSettings], survey_of(context)
    rows: Sequence[LayerInfo] = survey.layers
    rounded = [i for i, row in enumerate(rows) if row.rounded]
    fan_out(context, executor, WORKER, [f"sensitivity/{i:04d}" for i in rounded], report)
    if context.manifest("search").done("front"):
        return
    errors = {i: context.read("search", f"sensitivity/{i:04d}")[0].value["errors"] for i in rounded}
    kinds: dict[str, list[int]] = {}
    for i in rounded:
        kinds.setdefault(kind_of(rows[i].name), []).append(i)
    row = [WEIGHT_ONLY] * len(rows)
    for members in kinds.values():
        spent = allocate_greedily([errors[i] for i in members], widths_of(settings, "decoupled"), settings.budget)
        for i, bits in zip(members, spent, strict=True):
            row[i] = bits
    policy = Policy((tuple(row[i] for i in rounded),))
    with unit_of(context, "search", "front") as unit:
        unit.value = {
            "policy": [row] * survey.steps,
            "mean_bits": policy.mean,
            "mac_weighted_bits": policy.weighted_mean([rows[i].macs or 0 for i in rounded]),
            "rollout_error": None,
            "front": 1,
            "kinds": {kind: len(members) for kind, members in kinds.items()},
        }
