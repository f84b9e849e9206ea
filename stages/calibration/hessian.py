"""Hessian: every layer's Gram matrix of inputs, its timesteps weighted by the temporal Fisher information.

H'_l = sum_t alpha[t, l] X_t^T X_t / rows (AdaTSQ, sec. 3.2), alpha = softmax_t(I / tau). Layers fed the same tensor
share the per-step Gram and differ in alpha. Sums run over steps, then batches, in order, in float64.
Units: `gram/<layer that owns the input>`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from adatsq_pipe.stages.base.context import Context, Executor, Report
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings, Settings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import fan_out, unit_of
from adatsq_pipe.stages.calibration import inputs
from adatsq_pipe.stages.calibration.scores import fisher_scores
from adatsq_pipe.stages.calibration.survey import active_steps, survey_of
from adatsq_pipe.stages.denoiser.device import settle
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.storage.fingerprint import Plain

if TYPE_CHECKING:
    from torch import Tensor


class HessianSettings(Settings):
    """[hessian]"""

    table: ClassVar[str] = "hessian"

    temporal: bool = True
    """Weight timesteps by Fisher information, if the recipe does; false = all alike."""
    effective_steps: float = Field(default=0.8, gt=0, le=1)
    """Effective number of steps exp(H(alpha)), as a share of all steps; fixes the temperature tau per layer. The paper
    gives no tau; of 0.5, 0.8 and 1 (all alike) 0.8 did best on the built-in flux-dev at 4 bits."""


class Hessian:
    """The stage's worker."""

    stage: ClassVar[str] = "hessian"

    def __init__(self, context: Context) -> None:
        import torch

        self.context, self.settings = context, context.settings[HessianSettings]
        compute = context.settings[ComputeSettings]
        settle(device=compute.device, threads=compute.threads)
        self.device = compute.device
        self.survey = survey_of(context)
        self.fisher_TL = torch.from_numpy(fisher_scores(context))

    def __call__(self, key: str) -> None:
        import torch

        from adatsq_pipe.stages.numerics.sensitivity import effective_steps
        from adatsq_pipe.storage import tensors

        source = key.partition("/")[2]
        sharers = [i for i, row in enumerate(self.survey["layers"]) if row["source"] == source]
        width = self.survey["layers"][sharers[0]]["in"]
        with unit_of(self.context, self.stage, key) as unit:
            weights = [self._weights(i) for i in sharers]
            grams = [torch.zeros(width, width, dtype=torch.float64, device=self.device) for _ in sharers]
            for step, rows in inputs.rows(self.context, source):
                with unit.timed("algebra"):
                    x = rows.to(self.device).float()
                    gram = (x.T @ x).double() / len(x)
                    for total, (alpha, _) in zip(grams, weights, strict=True):
                        total += alpha[step] * gram
            names = [self.survey["layers"][i]["name"] for i in sharers]
            tensors.write(unit.folder, {name: gram.float() for name, gram in zip(names, grams, strict=True)})
            unit.value = {
                name: {"tau": tau if tau < 1e300 else None, "effective_steps": round(effective_steps(alpha), 3)}
                for name, (alpha, tau) in zip(names, weights, strict=True)
            }

    def _weights(self, layer: int) -> tuple[Tensor, float]:
        from adatsq_pipe.stages.numerics.sensitivity import temporal_weights

        steps = self.survey["steps"]
        temporal = self.settings.temporal and self.context.settings[Recipe].temporal
        share = self.settings.effective_steps if temporal else 1.0
        here = active_steps(self.survey, self.survey["layers"][layer])
        alpha, tau = temporal_weights(self.fisher_TL[here, layer], effective=max(1.0, share * len(here)))
        weights = alpha.new_zeros(steps)
        weights[here] = alpha
        return weights, tau


def _units(context: Context) -> list[str]:
    layers = survey_of(context)["layers"]
    return [f"gram/{row['name']}" for row in layers if row["source"] == row["name"]]


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, Hessian, _units(context), report)


def _reads(settings: RunSettings, model: str) -> Plain:
    return {**settings.identity(ComputeSettings, HessianSettings), "temporal": settings[Recipe].temporal}


STAGE = Stage(
    name="hessian",
    version=1,
    needs=("capture", "fisher"),
    reads=_reads,
    run=run,
    expected=lambda context: len(_units(context)),
    settings=HessianSettings,
)
