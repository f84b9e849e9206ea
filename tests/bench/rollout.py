"""Roll out policies on the solved weights of a finished run: shared by the benches of end-to-end effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from adatsq_pipe.pipeline.plan import plan
from adatsq_pipe.pipeline.request import load_config
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.survey import Survey
from adatsq_pipe.stages.calibration.effects import is_end_to_end
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.calibration.trajectories import read_trajectory
from adatsq_pipe.stages.denoiser.conditions import calibration_shards
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.numerics.metrics import mean_log_error
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, Policy
from adatsq_pipe.stages.runtime.policy_hook import set_bits
from adatsq_pipe.stages.weights.solved import load_solved
from adatsq_pipe.storage.rundir import RunDir


def context_of(run_dir: Path) -> Context:
    """The context of a run as it was last asked for. Raises ClickException if it has no end-to-end effects."""
    run = RunDir.open(str(run_dir))
    context = plan(load_config(run, None, None, None, ()), run)[1]
    if not is_end_to_end(context):
        raise click.ClickException("the run has no end-to-end effects; run with recipe.method=endpoint")
    return context


def rounded_mask(survey: Survey) -> npt.NDArray[np.bool_]:
    """Where a policy has activation bits, [steps, layers]."""
    mask = np.zeros((survey.steps, len(survey.layers)), bool)
    for place, row in enumerate(survey.layers):
        if row.rounded:
            mask[survey.steps_of(row), place] = True
    return mask


class Rollouts:
    """The solved weights with changing policies, on calibration batches."""

    def __init__(self, context: Context) -> None:
        survey = survey_of(context)
        self.context, self.captions = context, calibration_shards(context)
        self.weights_only = Policy.uniform(survey.steps, len(survey.layers), WEIGHT_ONLY)
        self.denoiser = denoiser_of(context, to_change=True)
        self.layers = list(load_solved(context, self.denoiser.transformer, self.weights_only).values())

    def error(self, policy: Policy, batches: Sequence[int]) -> float:
        """The relative squared error of the final latents, the geometric mean over the captions of `batches`."""
        logs, counts = list[float](), list[int]()
        for batch in batches:
            captions, wanted = self.captions[batch], read_trajectory(self.context, batch).latents
            run = self.denoiser.record(captions, see=lambda j, call: set_bits(self.layers, policy.of_step(call.step)))
            counts.append(len(captions.prompts))
            logs.append(mean_log_error(run.latents, wanted, counts[-1]))
        return math.exp(float(np.average(logs, weights=counts)))
