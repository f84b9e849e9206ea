"""Hessian's worker: sums of weighted Gram matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.calibration import inputs
from adatsq_pipe.stages.calibration.hessian import HessianSettings, tasks
from adatsq_pipe.stages.calibration.scores import fisher_scores
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.calibration.unit_keys import read_gram_unit
from adatsq_pipe.stages.denoiser.device import require, settle
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics import gram
from adatsq_pipe.stages.numerics.sensitivity import effective_steps, temporal_weights
from adatsq_pipe.storage import tensors


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
        self.tasks = tasks(self.survey.layers)
        self.fisher_TL = torch.from_numpy(fisher_scores(context))

    def __call__(self, key: str) -> None:
        """Do a unit, or the task of several narrow inputs (see `tasks`): what is missing of its units."""
        if key in self.tasks:
            for unit in self.context.manifest(self.stage).missing(self.tasks[key]):
                self._unit(unit)
        else:
            self._unit(key)

    def _unit(self, key: str) -> None:
        source = read_gram_unit(key)
        sharers = [i for i, row in enumerate(self.survey.layers) if row.input_of == source]
        with unit_of(self.context, self.stage, key) as unit:
            names = [self.survey.layers[i].name for i in sharers]
            weights = dict(zip(names, map(self._weights, sharers), strict=True))
            owners = {name: self._alike(name, weights) for name in names}
            distinct = {name: weights[name][0] for name in dict.fromkeys(owners.values())}
            rows = inputs.row_parts(self.context, source)
            with unit.timed("algebra"):
                found = gram.weighted(rows, distinct, device=self.device)
            tensors.write(unit.folder, found)
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
