"""Capture: record full-precision runs, and meanwhile the inputs of every linear layer at every timestep.

Units: `survey` (the layers, from one call, and the steps of a run), `left` (what is no layer to be quantized, and why);
then for every batch of captions, in one task that makes each call once, `trajectory/<batch>` (denoiser outputs) and
`activations/<block>-<batch>`: a seeded subsample of input rows per (step, layer), and the exact absolute maximum per
channel over all tokens. Layers fed the same tensor (q, k, v) store it once. Full activations of a large model would be
hundreds of gigabytes a caption, hence the subsample of a stated size.
"""

from __future__ import annotations

from adatsq_pipe.stages.architecture.families import _family
from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings, DataSettings, ModelSettings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import fan_out
from adatsq_pipe.stages.calibration.survey import (
    CaptureSettings,
    total_units,
    unit_waves,
)
from adatsq_pipe.storage.fingerprint import Plain

WORKER = WorkerRef(stage="capture", path="adatsq_pipe.stages.calibration.capture_worker:Capture")


def run(context: Context, executor: Executor, report: Report) -> None:
    before = 0
    for wave in range(2):
        tasks = unit_waves(context)[wave]
        fan_out(context, executor, WORKER, tasks, lambda done, n: report(before + done, total_units(context) or n))  # noqa: B023
        before += sum(map(len, tasks.values()))


def _reads(settings: RunSettings, model: str) -> Plain:
    source = {"model": model, "call": settings[ModelSettings].identity()["call"], **_family.identity()}
    return {**settings.identity(DataSettings, ComputeSettings, CaptureSettings), **source}


STAGE = Stage(
    name="capture", version=2, needs=(), reads=_reads, run=run, expected=total_units, settings=CaptureSettings
)
