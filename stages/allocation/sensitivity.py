"""Which sensitivity a run measured, and its map over steps and layers; read back without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.effects import WIDTHS, effects_of, is_end_to_end, obstacle_of, squared
from adatsq_pipe.stages.calibration.scores import fisher_scores
from adatsq_pipe.stages.methods._recipe import Recipe

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAP_BITS = 4
"""Activation bits whose effect an end-to-end map shows."""


def sensitivity_of(context: Context) -> str:
    """ "trajectory" or "step", as fisher measured it; "step, because ..." where the recipe wants the trajectory and the
    pipeline's loop cannot be differentiated."""
    if context.settings[Recipe].sensitivity == "step":
        return "step"
    obstacle = obstacle_of(context)
    return f"step, because {obstacle}" if obstacle else "trajectory"


def sensitivity_map(context: Context) -> npt.NDArray[np.float64]:
    """What rounding costs at every step and layer, [steps, layers in survey order].

    End to end: the expected squared effect on the final latents of rounding the layer's input at the step to MAP_BITS
    bits, over that of rounding all of them together; 0 for layers whose inputs are not rounded. Otherwise the Fisher
    scores.
    """
    if not is_end_to_end(context):
        return fisher_scores(context)
    effects = effects_of(context).alike()
    return squared(effects.activations[..., WIDTHS.index(MAP_BITS)])
