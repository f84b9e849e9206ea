"""Text encoder: weights of the pipeline's text encoders to 8 or 4 bits, to nearest.

It is part of a run only where `text_encoder.bits` is not 16. Units: `shard/<component>/<number>`, some tensors of an
encoder as the assembled folder has them. A unit reads a tensor at a time, and needs no other unit.
"""

from __future__ import annotations

from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import fan_out
from adatsq_pipe.stages.text.encoders import TextEncoderSettings, encoders_of, shards_of, unit_of_shard
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.fingerprint import Plain

WORKER = WorkerRef(stage="text_encoder", path="adatsq_pipe.stages.text.text_encoder_worker:RoundEncoders")


def units_of(context: Context) -> list[str]:
    """Keys of the stage's units."""
    folder = context.model.path
    return [
        unit_of_shard(encoder.name, place)
        for encoder in encoders_of(folder)
        if not encoder.left
        for place in range(len(shards_of(folder, encoder.name)))
    ]


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, WORKER, units_of(context), report)


def _reads(settings: RunSettings, model: str) -> Plain:
    """The device, for a GPU adds up in another order; neither the dtype nor the number of threads changes a byte."""
    device = settings[ComputeSettings].device.partition(":")[0]
    return {"model": model, "bits": settings[TextEncoderSettings].bits, "device": device}


def _expected(context: Context) -> int | None:
    try:
        return len(units_of(context))
    except (StorageError, OSError):  # a model whose folder is gone
        return None


STAGE = Stage(
    name="text_encoder",
    version=2,
    needs=(),
    reads=_reads,
    run=run,
    expected=_expected,
    settings=TextEncoderSettings,
)
