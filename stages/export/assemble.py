"""Assemble: packed codes, scales and policy become a diffusers folder that `from_pretrained` loads.

Unit: `model`, the folder itself. Everything outside the quantized layers is copied as the source folder stores it.
Text encoders that the run quantizes come from their own stage. The policy is what search chose, or another point of its
front (`adatsq-pipe pick`).
"""

from __future__ import annotations

from adatsq_pipe.stages.allocation.points import AssembleSettings
from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import fan_out
from adatsq_pipe.storage.fingerprint import Plain

WORKER = WorkerRef(stage="assemble", path="adatsq_pipe.stages.export.assemble_worker:Assemble")


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, WORKER, ["model"], report)


def _reads(settings: RunSettings, model: str) -> Plain:
    called = settings[ModelSettings].identity()
    chosen = settings[AssembleSettings].identity()
    return {"model": model, "call": called["call"], "world": called["world"], **chosen}


STAGE = Stage(
    name="assemble",
    version=3,
    needs=("capture", "solve", "search", "text_encoder"),
    reads=_reads,
    run=run,
    expected=lambda context: 1,
    settings=AssembleSettings,
)
