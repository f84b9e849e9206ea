"""One activation width a step for the whole model, by the error that each step alone causes (TMPDiff, 2603.14062).

The error of a step at a width is that of the final latents of a run in which only this step rounds its activations,
relative to a run in which none does. Units of the search stage: `step/<step>`, one policy's `rollout/policy`, and
`front`. No torch here.
"""

from __future__ import annotations

import math
from dataclasses import replace

from adatsq_pipe.stages.allocation.batch_slices import BatchSlice
from adatsq_pipe.stages.allocation.step_rows import rounded_layers, write_policy
from adatsq_pipe.stages.allocation.trellis import SearchSettings, widths_of
from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.base.units import fan_out
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.numerics.bisection import bits_by_bisection

CAPTIONS = 4
"""Calibration captions on which steps are measured, at most: a step costs half a run for each width."""
ROLLOUT = "rollout/policy"
WORKER = WorkerRef(stage="search", path="adatsq_pipe.stages.allocation.bisection_worker:StepErrors")


def measured_slice(data: DataSettings, settings: SearchSettings) -> BatchSlice:
    """The captions on which steps are measured: the first of the search's first slice."""
    first = BatchSlice.for_trellis(data, settings)[0]
    return replace(first, stop=min(first.stop, first.start + CAPTIONS))


def step_unit(step: int) -> str:
    """The unit of a step's errors."""
    return f"step/{step:04d}"


def expected(context: Context) -> int:
    """Units of the finished stage: the steps, the rollout, the front."""
    return survey_of(context).steps + 2


def policy_bits(context: Context) -> tuple[int, ...]:
    """The bits of every step, from the units of the steps."""
    settings, survey = context.settings[SearchSettings], survey_of(context)
    errors = [context.read("search", step_unit(t))[0].value["errors"] for t in range(survey.steps)]
    weights = [len(here) for here in rounded_layers(survey)]
    return bits_by_bisection(errors, widths_of(settings, "bisection"), settings.budget, weights)


def allocate(context: Context, executor: Executor, report: Report) -> None:
    """Measure every step, bisect, roll the policy out, and commit it as the stage's `front`."""
    survey, total = survey_of(context), expected(context)
    steps = [step_unit(t) for t in range(survey.steps)]
    fan_out(context, executor, WORKER, steps, lambda done, n: report(done, total))
    fan_out(context, executor, WORKER, [ROLLOUT], lambda done, n: report(len(steps) + done, total))
    if not context.manifest("search").done("front"):
        rollout = context.read("search", ROLLOUT)[0].value
        write_policy(context, survey, rollout["choices"], math.exp(rollout["error"]))
    report(total, total)
