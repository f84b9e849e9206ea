"""Evaluate: held-out captions, paired seeds, the assembled model against full precision.

Where the model draws the built-in world, each picture is also read back and scored against its prompt.
Units: `quantized/<batch>`, the draws through the folder as a user loads it: one row of metrics for each sample, one of
latent error and PSNR for each step.
"""

from __future__ import annotations

from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import fan_out
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings, batch_count, draw_unit, draws_identity

WORKER = WorkerRef(stage="evaluate", path="adatsq_pipe.stages.evaluation.evaluate_worker:Evaluate")


def _units(context: Context) -> list[str]:
    return [f"quantized/{i:03d}" for i in range(batch_count(context))]


def ready(context: Context) -> list[str]:
    """The units that can be done now: the model is assembled, and what they are compared with is drawn."""
    if not context.manifest("assemble").done("model"):
        return []
    wanted = {draw_unit(place): unit for place, unit in enumerate(_units(context))}
    missing = set(context.manifest("reference").missing(list(wanted)))
    return [unit for draw, unit in wanted.items() if draw not in missing]


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, WORKER, _units(context), report)


STAGE = Stage(
    name="evaluate",
    version=4,
    needs=("assemble", "reference"),
    reads=draws_identity,
    run=run,
    expected=lambda context: len(_units(context)),
    settings=EvaluateSettings,
)
