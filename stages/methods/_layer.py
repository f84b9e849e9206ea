"""A recipe applied to one layer: group sizes, the stored form, or why they are incompatible.

Checked before any work, and again when a layer is solved.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.methods import _layer
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.storage.checkpoint import weight_shapes

if TYPE_CHECKING:
    from adatsq_pipe.stages.runtime.spec import LayerSpec

MODULATION = ("norm", "adaln", "modulation", "scale_shift", "time")
"""Name parts of layers whose input is one vector per sample, in the models of diffusers."""


def largest_group(width: int, group: int) -> int:
    """The largest divisor of `width` that is at most `group`; 0 stays 0 (one group for all channels)."""
    return next(size for size in range(min(group, width), 0, -1) if width % size == 0) if group else 0


def groups_of(recipe: Recipe, row: LayerInfo, *, searched: int | None = None) -> tuple[int, int]:
    """(weight group, activation group) of the layer of a survey row; `searched` is what was chosen for it."""
    conditioning = row.role == "conditioning"
    sizes = (recipe.conditioning_group, 0) if conditioning else (recipe.weight_group, recipe.activation_group)
    sizes = sizes if searched is None else (searched, searched)
    return (
        (largest_group(row.in_features, sizes[0]), largest_group(row.in_features, sizes[1]))
        if recipe.group_fit
        else sizes
    )


def incompatibility(recipe: Recipe, row: LayerInfo) -> str:
    """Why the layer of a survey row (name, kind, in, out) cannot be stored under a recipe, and what helps; or ""."""
    if recipe.number_format != "int" and row.role != "conditioning":
        if (recipe.weight_bits, recipe.activation_bits) != (4, 4):
            return f"{recipe.number_format} has 4-bit weights and activations; set both of the recipe's to 4"
        if row.in_features % (size := 16 if recipe.number_format == "nvfp4" else 32):
            return (
                f"layer {row.name}: {recipe.number_format}'s blocks of {size} do not divide the input width "
                f"{row.in_features}; choose another method for this model"
            )
    of_weight, of_tokens = groups_of(recipe, row)
    least = min(row.in_features, row.out_features)
    for what, group in (("weight", of_weight), ("activation", of_tokens)):
        field = "conditioning_group" if what == "weight" and row.role == "conditioning" else f"{what}_group"
        if group and row.in_features % group:
            return (
                f"layer {row.name}: {field} {group} does not divide the input width {row.in_features}; set "
                f"recipe.{field} to a divisor, or 0, or recipe.group_fit = true"
            )
    if row.role != "conditioning" and recipe.rank > least:
        return f"layer {row.name}: rank {recipe.rank} is above the layer's width {least}; lower recipe.rank"
    return ""


def check_recipe(recipe: Recipe, model: Path) -> None:
    """Raise StageError if a linear layer of the model's blocks cannot take the recipe, judged by the stored shapes.

    Which layers are fed one vector a sample shows only when the model runs; here their names say it.
    """
    for name, shape in weight_shapes(model).items():
        in_a_block = any(part.isdigit() for part in name.split("."))
        if len(shape) == 2 and in_a_block:
            kind = "conditioning" if any(part in name.lower() for part in MODULATION) else "tokens"
            row = {"name": name, "kind": kind, "in": shape[1], "out": shape[0]}
            if reason := incompatibility(recipe, LayerInfo.from_plain(row)):
                raise StageError(f"{reason} (nothing was started)")


def spec_of(recipe: Recipe, row: LayerInfo, *, group: int | None = None, bits: int | None = None) -> LayerSpec:
    """How the layer of a survey row is stored under a recipe, in groups of `group` and of `bits` weight bits if these
    were chosen for it.

    Raises StageError if it cannot be.
    """
    # Both import torch, which `run` checks a recipe without.
    from adatsq_pipe.stages.numerics.transform import block_size
    from adatsq_pipe.stages.runtime.spec import LayerSpec  # imports torch

    if reason := _layer.incompatibility(recipe, row):
        raise StageError(reason)
    of_weight, of_tokens = _layer.groups_of(recipe, row, searched=group)
    if row.role == "conditioning":
        return LayerSpec(
            weight_bits=recipe.conditioning_bits, group=of_weight, block=1,
            symmetric_activations=recipe.activation_symmetric,
        )  # fmt: skip
    regular = recipe.transform == "regular"
    block = 1 if recipe.transform == "none" else block_size(row.in_features, recipe.transform_block, regular=regular)
    skipped = bool(recipe.smoothing_skip) and row.name.endswith(recipe.smoothing_skip)
    return LayerSpec(
        weight_bits=bits or recipe.weight_bits,
        group=of_weight,
        block=block,
        regular=regular,
        dual=recipe.transform == "greedy" and block > 1,
        symmetric_activations=recipe.activation_symmetric,
        activation_group=of_tokens,
        permuted=recipe.permuted,
        codebook=recipe.codebook or recipe.number_format != "int",
        number_format=None if recipe.number_format == "int" else recipe.number_format,
        activation_codebook=recipe.codebook,
        smoothed=recipe.smoothing != "none" and not skipped,
        rank=recipe.rank,
        time_groups=recipe.time_groups,
        clip_bins=recipe.clip_bins,
        shift_groups=recipe.shift_groups,
    )
