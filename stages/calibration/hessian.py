"""Hessian: every layer's Gram matrix of inputs, its timesteps weighted by the temporal Fisher information.

H'_l = sum_t alpha[t, l] X_t^T X_t / rows (AdaTSQ, sec. 3.2), alpha = softmax_t(I / tau). Layers fed the same tensor
share the per-step Gram; those of equal alpha share H', which is stored once: the unit's value names, for every layer,
the layer under whose name its `gram` lies. Sums run over steps in order, in float64. Half of each matrix is stored.
Units: `gram/<layer that owns the input>`; those of narrow inputs are done a few at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings, Settings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.base.units import fan_out
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.calibration.unit_keys import gram_unit
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.storage.fingerprint import Plain


class HessianSettings(Settings):
    """[hessian]"""

    table: ClassVar[str] = "hessian"

    temporal: bool = True
    """Weight timesteps by Fisher information, if the recipe does; false = all alike."""
    effective_steps: float = Field(default=0.8, gt=0, le=1)
    """Effective number of steps exp(H(alpha)), as a share of all steps; fixes the temperature tau per layer. The paper
    gives no tau; of 0.5, 0.8 and 1 (all alike) 0.8 did best on the built-in flux-dev at 4 bits."""


TOGETHER = 4
"""Inputs of a task at most, so that work is left for other workers."""
ELEMENTS = 2**23
"""Numbers in the Gram matrices of the inputs of a task, if it has several."""

WORKER = WorkerRef(stage="hessian", path="adatsq_pipe.stages.calibration.hessian_worker:Hessian")


def _units(context: Context) -> list[str]:
    return [gram_unit(row.name) for row in survey_of(context).owners()]


def tasks(rows: Sequence[LayerInfo]) -> dict[str, list[str]]:
    """The units of every task, by the task's name: up to TOGETHER narrow inputs in a row are one, a wide one is one."""
    found, last, elements = dict[str, list[str]](), "", 0
    for row in rows:
        if not row.owns_input:
            continue
        size = row.in_features**2
        if not last or len(found[last]) == TOGETHER or elements + size > ELEMENTS:
            last, elements = f"grams/{row.name}", 0
            found[last] = []
        found[last].append(gram_unit(row.name))
        elements += size
    return found


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, WORKER, tasks(survey_of(context).layers), report)


def _reads(settings: RunSettings, model: str) -> Plain:
    return {**settings.identity(ComputeSettings, HessianSettings), "temporal": settings[Recipe].temporal}


STAGE = Stage(
    name="hessian",
    version=3,
    needs=("capture", "fisher"),
    reads=_reads,
    run=run,
    expected=lambda context: len(_units(context)),
    settings=HessianSettings,
)
