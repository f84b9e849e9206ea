"""Text effect: what quantized text encoders alone cost, on embeddings and on pictures of held-out captions.

It is part of a run only where `text_encoder.bits` is not 16. The denoiser is the full-precision one. Units:
`draw/<batch>` for the reference's batches with the first draw of each caption; `samples.parquet` has a row for each
draw, and the value says how far off the denoiser's arguments are.
"""

from __future__ import annotations

from dataclasses import dataclass

from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import fan_out, shards
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings, draws_identity

WORKER = WorkerRef(stage="text_effect", path="adatsq_pipe.stages.text.effect_worker:TextEffect")
ROWS = "samples.parquet"


@dataclass(frozen=True, kw_only=True)
class EmbeddingEffect:
    """How far off an argument is that the denoiser gets from the text encoders."""

    argument: str
    relative_error: float
    """L2, over all captions."""
    cosine: float
    """Mean of the cosines of its vectors, one a token or one a caption."""
    least_cosine: float
    vectors: int


def units_of(context: Context) -> list[str]:
    """Keys of the stage's units."""
    settings = context.settings[EvaluateSettings]
    return [f"draw/{i:03d}" for i in range(len(shards(len(settings.prompts), settings.batch)))]


def effects_of(context: Context) -> list[EmbeddingEffect]:
    """The effects on embeddings over all units of the finished stage."""
    manifest, total = context.manifest("text_effect"), dict[str, dict[str, float]]()
    for unit in manifest.units():
        for name, parts in manifest.read(unit).value.items():
            sums = total.setdefault(name, dict.fromkeys(parts, 0.0) | {"least_cosine": 1.0})
            for key, value in parts.items():
                sums[key] = min(sums[key], value) if key == "least_cosine" else sums[key] + value
    return [
        EmbeddingEffect(
            argument=name,
            relative_error=(sums["squared_error"] / max(sums["squared"], 1e-300)) ** 0.5,
            cosine=sums["cosines"] / sums["vectors"],
            least_cosine=sums["least_cosine"],
            vectors=int(sums["vectors"]),
        )
        for name, sums in sorted(total.items())
    ]


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, WORKER, units_of(context), report)


STAGE = Stage(
    name="text_effect",
    version=1,
    needs=("text_encoder", "reference"),
    reads=draws_identity,
    run=run,
    expected=lambda context: len(units_of(context)),
    settings=EvaluateSettings,
)
