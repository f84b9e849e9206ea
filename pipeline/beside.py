"""What idle workers may do beside a stage: units of a later stage whose inputs are there already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from adatsq_pipe.pipeline.plan import Step
from adatsq_pipe.stages.base.context import Context, WorkerRef
from adatsq_pipe.stages.evaluation import evaluate, reference
from adatsq_pipe.storage.rundir import RunDir

DRAWN_BESIDE = ("capture", "fisher", "assemble")
"""Stages beside which the reference is drawn: their workers hold the full-precision model, or none."""


class Spare(NamedTuple):
    """Units of a worker that are not done."""

    worker: WorkerRef
    units: list[str]


def spare_units(name: str, steps: Sequence[Step], stages: Sequence[str], context: Context, run: RunDir) -> Spare:
    """What workers that stage `name` leaves idle may do; `stages` are all that are to be done.

    It is draws of the reference, and beside the reference the quantized draws whose reference is done: a worker with no
    task left would wait for the others.
    """
    if name == reference.STAGE.name:
        return Spare(
            evaluate.WORKER, _missing(evaluate.STAGE.name, evaluate.ready(context), steps, stages, context, run)
        )
    units = reference.units(context) if name in DRAWN_BESIDE else []
    return Spare(reference.WORKER, _missing(reference.STAGE.name, units, steps, stages, context, run))


def _missing(
    name: str, units: Sequence[str], steps: Sequence[Step], stages: Sequence[str], context: Context, run: RunDir
) -> list[str]:
    """Those of `units` of stage `name` that are to be done. Its folder is then made ready for them."""
    step = next((s for s in steps if s.stage.name == name), None)
    if step is None or not units or name not in stages or step.complete:
        return []
    run.record_identity(name, step.fingerprint, dict(step.identity))
    return list(context.manifest(name).missing(units))
