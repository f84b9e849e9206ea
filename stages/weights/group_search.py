"""The size of groups, chosen for every layer: errors of each size on calibration rows, then an evolutionary search.

Units of the solve stage, before its layers: `sizes/<layer>` (the errors of one layer) and `choice`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.calibration import inputs
from adatsq_pipe.stages.methods._layer import largest_group
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.evolve import evolve
from adatsq_pipe.stages.numerics.grid import dequantize, fake_quantize_tokens, quantize
from adatsq_pipe.stages.numerics.weight_grid import weight_grid

ROWS = 512
"""Calibration rows of a layer that errors are measured on, evenly from all timesteps."""


def sizes(recipe: Recipe, width: int) -> list[int]:
    """The group sizes a layer of this input width can have under a recipe that searches them, rising."""
    return sorted({largest_group(width, group) for group in (*recipe.group_search, recipe.weight_group)})


def errors_of(context: Context, recipe: Recipe, row: LayerInfo, w_OI: Tensor) -> dict[str, float]:
    """The output error of a layer, relative, with weight and activations in groups of every size."""
    x = torch.cat([found for _, found in inputs.rows(context, row.input_of)]).to(w_OI)
    x = x[:: max(1, len(x) // ROWS)]
    wanted, errors = x @ w_OI.T, dict[str, float]()
    for size in sizes(recipe, row.in_features):
        grid = weight_grid(
            w_OI, bits=recipe.weight_bits, group=size, symmetric=recipe.weight_symmetric, clip=recipe.weight_clip
        )
        columns = grid.columns(row.in_features)
        held = dequantize(quantize(w_OI, *columns, grid.qmax), *columns)
        qmax = 2.0**recipe.activation_bits - 1
        got = fake_quantize_tokens(x, qmax, symmetric=recipe.activation_symmetric, group=size) @ held.T
        errors[str(size)] = float((got - wanted).double().square().sum() / wanted.double().square().sum().clamp(1e-300))
    return errors


def chosen(context: Context, recipe: Recipe, rows: Sequence[LayerInfo]) -> dict[str, int]:
    """The size of every layer's groups, by name: least summed error, the mean size no smaller than the recipe's."""
    found = [context.read("solve", f"sizes/{row.name}")[0].value for row in rows]
    options = [sizes(recipe, row.in_features) for row in rows]
    errors = [[by_size[str(size)] for size in sized] for by_size, sized in zip(found, options, strict=True)]
    start = tuple(
        sized.index(largest_group(row.in_features, recipe.weight_group))
        for row, sized in zip(rows, options, strict=True)
    )
    mean = sum(sized[i] for i, sized in zip(start, options, strict=True)) / len(rows)
    genes = evolve(errors, options, start, least_mean=min(mean, float(recipe.weight_group)))
    return {row.name: sized[i] for row, sized, i in zip(rows, options, genes, strict=True)}
