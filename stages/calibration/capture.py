"""Capture: record full-precision runs, then the inputs of every linear layer at every timestep.

Units: `trajectory/<shard>` (denoiser outputs), `survey` (the layers, from one call), `left` (what is no layer to be
quantized, and why), and
`activations/<block>-<shard>`: a seeded subsample of input rows per (step, layer), and the exact absolute maximum per
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
    for wave in range(3):
        before = [key for keys in unit_waves(context)[:wave] for key in keys]
        keys = unit_waves(context)[wave]
        fan_out(context, executor, WORKER, keys, lambda done, n: report(len(before) + done, total_units(context) or n))  # noqa: B023


def _reads(settings: RunSettings, model: str) -> Plain:
    source = {"model": model, "call": settings[ModelSettings].identity()["call"], **_family.identity()}
    return {**settings.identity(DataSettings, ComputeSettings, CaptureSettings), **source}


STAGE = Stage(
    name="capture", version=2, needs=(), reads=_reads, run=run, expected=total_units, settings=CaptureSettings
)
