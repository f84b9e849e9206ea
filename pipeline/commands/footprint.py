"""How large a run's things would be: weights, what the capture keeps, Gram matrices, the quantized transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.methods._layer import spec_of
from adatsq_pipe.stages.methods._recipe import Recipe

WEIGHT_BITS = (4, 3)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes."""

    weights: int
    """The transformer in the compute dtype."""
    captured_per_step: int
    """Sampled input rows of one scheduler step and one batch of captions; shared inputs once."""
    gram: int
    """The Gram matrix, float64, of the widest input."""
    quantized: Mapping[int, int]
    """The transformer's file by weight bits: packed codes, scales, policy; what is left in bfloat16."""


def footprint(
    rows: Sequence[LayerInfo], *, parameters: int, recipe: Recipe, dtype: str, captured_rows: int, steps: int
) -> Footprint:
    """Of the layers of `rows` (see Inspection.rows), with `captured_rows` input rows per step and layer."""
    size = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    inputs = {row.input_of: row.in_features for row in rows}
    return Footprint(
        weights=size * parameters,
        captured_per_step=size * captured_rows * sum(inputs.values()),
        gram=8 * max(inputs.values()) ** 2,
        quantized={bits: _file(rows, parameters, recipe, bits, steps) for bits in WEIGHT_BITS},
    )


def _file(rows: Sequence[LayerInfo], parameters: int, recipe: Recipe, bits: int, steps: int) -> int:
    variant = recipe.model_copy(update={"weight_bits": bits, "group_fit": True, "rank": 0})
    layers: int = 0
    for row in rows:
        for shape, dtype in spec_of(variant, row).tensors(row.in_features, row.out_features, steps).values():
            layers += math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    left: int = parameters - sum(row.in_features * row.out_features for row in rows)
    return layers + 2 * left
