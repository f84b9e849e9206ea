"""Weight bits by layer, under a mean over parameters: where rounding a weight moves the final latents least, fewer.

A weight is the same at every step, so its effects on the final latents add up over steps with their signs. Effects were
measured of rounding to nearest at the recipe's weight bits. At b bits they go with the grid's step, 1 / (2^b - 1).
"""

from __future__ import annotations

from collections.abc import Sequence

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.calibration.effects import effects_of, is_end_to_end, squared
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.policy import rounding_error

WEIGHT_WIDTHS = (2, 3, 4, 5, 6, 8)


def widths_of(context: Context, rows: Sequence[LayerInfo]) -> dict[str, int]:
    """The weight bits of every layer whose input is rounded, by name. The others keep recipe.conditioning_bits.

    Without end-to-end effects it is the recipe's weight bits everywhere.
    """
    import numpy as np  # status reads this module and needs no numpy

    from adatsq_pipe.stages.numerics.lagrange import Walk  # imports numpy

    recipe = context.settings[Recipe]
    chosen = [i for i, row in enumerate(rows) if row.rounded]
    if not is_end_to_end(context):
        return {rows[i].name: recipe.weight_bits for i in chosen}
    cost_N = squared(effects_of(context).alike().weights.sum(1))[chosen]
    law = np.array([rounding_error(b) / rounding_error(recipe.weight_bits) for b in WEIGHT_WIDTHS])
    sizes = np.array([float(rows[i].size) for i in chosen])
    choice, _ = Walk.of(cost_N[:, None] * law, WEIGHT_WIDTHS, sizes).at_budget(recipe.weight_budget)
    return {rows[i].name: WEIGHT_WIDTHS[k] for i, k in zip(chosen, choice.tolist(), strict=True)}
