"""Hessian's worker: sums of weighted Gram matrices."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.calibration import inputs
from adatsq_pipe.stages.calibration.hessian import HessianSettings
from adatsq_pipe.stages.calibration.scores import fisher_scores
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.calibration.unit_keys import read_gram_unit
from adatsq_pipe.stages.denoiser.device import require, settle
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.sensitivity import effective_steps, temporal_weights
from adatsq_pipe.storage import tensors
from adatsq_pipe.storage.weights import LazyTensor


class Hessian:
    """The stage's worker."""

    stage: ClassVar[str] = "hessian"

    def __init__(self, context: Context) -> None:
        self.context, self.settings = context, context.settings[HessianSettings]
        compute = context.settings[ComputeSettings]
        require(compute.device)
        settle(device=compute.device, threads=compute.threads)
        self.device = compute.device
        self.survey = survey_of(context)
        self.fisher_TL = torch.from_numpy(fisher_scores(context))

    def __call__(self, key: str) -> None:
        source = read_gram_unit(key)
        sharers = [i for i, row in enumerate(self.survey.layers) if row.input_of == source]
        width = self.survey.layers[sharers[0]].in_features
        with unit_of(self.context, self.stage, key) as unit:
            names = [self.survey.layers[i].name for i in sharers]
            weights = dict(zip(names, map(self._weights, sharers), strict=True))
            owners = {name: self._alike(name, weights) for name in names}
            grams = {
                name: torch.zeros(width, width, dtype=torch.float64, device=self.device)
                for name in dict.fromkeys(owners.values())
            }
            of_step = torch.empty(width, width, device=self.device)
            for step, rows in inputs.rows(self.context, source):
                with unit.timed("algebra"):
                    x = rows.to(self.device).float()
                    torch.mm(x.T, x, out=of_step)
                    for name, gram in grams.items():
                        gram.add_(of_step, alpha=weights[name][0][step].item() / len(x))
            stored = {
                name: LazyTensor((width, width), torch.float32, partial(of_step.copy_, gram))
                for name, gram in grams.items()
            }  # one at a time in `of_step`: of FLUX's widest input each takes .9 GB
            tensors.write(unit.folder, stored)
            unit.value = {
                name: {
                    "gram": owners[name],
                    "tau": tau if tau < 1e300 else None,
                    "effective_steps": round(effective_steps(alpha), 3),
                }
                for name, (alpha, tau) in weights.items()
            }

    @staticmethod
    def _alike(name: str, weights: Mapping[str, tuple[Tensor, float]]) -> str:
        """The first layer with the same weights over timesteps: their Gram matrices are one."""
        return next(other for other, (alpha, _) in weights.items() if torch.equal(alpha, weights[name][0]))

    def _weights(self, layer: int) -> tuple[Tensor, float]:
        steps = self.survey.steps
        temporal = self.settings.temporal and self.context.settings[Recipe].temporal
        share = self.settings.effective_steps if temporal else 1.0
        here = self.survey.steps_of(self.survey.layers[layer])
        alpha, tau = temporal_weights(self.fisher_TL[here, layer], effective=max(1.0, share * len(here)))
        weights = alpha.new_zeros(steps)
        weights[here] = alpha
        return weights, tau
