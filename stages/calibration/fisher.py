"""Fisher: how much the denoiser's output at each timestep depends on each layer's weights.

Label-free: L = 1/2 |v - sg(v) - eps|^2 with eps ~ N(0, I), so dL/dv = -eps and no data beyond the recorded runs is
needed. Hooks on output gradients give `g`; |g^T x|^2 is reduced on the spot and no weight gradient is ever held.
Units: `scores/<block>-<shard>`, an array [steps of the block, layers] of mean squared gradients per sample.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings, Settings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import fan_out
from adatsq_pipe.stages.calibration.scores import score_units
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.storage.fingerprint import Plain


class FisherSettings(Settings):
    """[fisher]"""

    table: ClassVar[str] = "fisher"

    draws: int = Field(default=1, ge=1)
    """Noise draws per (timestep, batch of captions)."""
    seed: int = 0
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, one more forward. It is done anyway where the memory plan
    has it so."""

    def identity(self) -> dict[str, Plain]:
        """Recomputed blocks give the same gradients."""
        return {key: value for key, value in super().identity().items() if key != "gradient_checkpointing"}


WORKER = WorkerRef(stage="fisher", path="adatsq_pipe.stages.calibration.fisher_worker:Fisher")


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, WORKER, score_units(context), report)


def _reads(settings: RunSettings, model: str) -> Plain:
    found = settings.identity(ComputeSettings, FisherSettings)
    return {**found, "curvature": True} if settings[Recipe].time_search else found


STAGE = Stage(
    name="fisher",
    version=1,
    needs=("capture",),
    reads=_reads,
    run=run,
    expected=lambda context: len(score_units(context)) or None,
    settings=FisherSettings,
)
