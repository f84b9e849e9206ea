"""Reference: the full-precision draws that every quantized model of a run directory is compared with.

They depend on no quantized model, so they are drawn once for all of them. Units: `draw/<batch>` (latents before every
step and at the end, and pictures) and, where the model draws the built-in world, `truth` (features of true scenes).
"""

from __future__ import annotations

from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import fan_out
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings, batch_count, draw_unit, draws_identity

TRUTH = "truth"


WORKER = WorkerRef(stage="reference", path="adatsq_pipe.stages.evaluation.reference_worker:Reference")


def units(context: Context) -> list[str]:
    """Of the stage, as its settings say."""
    truth = [TRUTH] if context.settings[ModelSettings].world else []
    return [*truth, *map(draw_unit, range(batch_count(context)))]


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, WORKER, units(context), report)


STAGE = Stage(
    name="reference",
    version=4,
    needs=(),
    reads=draws_identity,
    run=run,
    expected=lambda context: len(units(context)),
    settings=EvaluateSettings,
)
