"""Floor: how far full precision is from itself when every weight of its denoiser changes by a relative 1e-7.

Quantized models that differ by less cannot be ranked. Only `compare` measures it: no ordinary run has this stage, but
it is fingerprinted and resumed as one. Unit: `draw/000`, the first batch of the reference's draws. Its value is a
`Floor`, its `samples.parquet` has a row for each draw.
"""

from __future__ import annotations

from dataclasses import dataclass

from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import fan_out
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.storage.fingerprint import Plain

SCALE = 1e-7
UNIT = "draw/000"
WORKER = WorkerRef(stage="floor", path="adatsq_pipe.stages.evaluation.floor_worker:ChangedDraws")


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Distance of full precision from itself. Both figures are None if no weight changed: the dtype cannot hold it."""

    latent_error: float | None
    """Geometric mean over draws of the relative squared error of the final latents."""
    psnr: float | None
    """Mean over draws of the pictures' PSNR, dB; equal pictures count as 200."""
    draws: int
    weights: int
    changed: int
    """How many of the weights changed."""

    def line(self, dtype: str) -> str:
        """What a table says of it, in one line."""
        change = "Floor: a relative change of 1e-7 in every weight"
        if self.latent_error is None or self.psnr is None:
            return f"{change} vanishes in {dtype}, so the floor is below the dtype."
        return (
            f"{change} ({dtype} holds it in {100 * self.changed / self.weights:.0f} % of them) puts full precision at "
            f"latent error {self.latent_error:.2g} (geometric mean) and PSNR {self.psnr:.0f} dB from itself, over the "
            f"first {self.draws} draws."
        )


def floor_of(context: Context) -> Floor:
    """The measured floor. Raises KeyError if the unit is not done."""
    return Floor(**context.manifest("floor").read(UNIT).value)


def _reads(settings: RunSettings, model: str) -> Plain:
    """The seed and the dtype stand in the reference's identity."""
    return {"scale": SCALE}


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, WORKER, [UNIT], report)


STAGE = Stage(
    name="floor",
    version=1,
    needs=("reference",),
    reads=_reads,
    run=run,
    expected=lambda context: 1,
    settings=EvaluateSettings,
)
