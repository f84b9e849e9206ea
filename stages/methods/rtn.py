"""Round to nearest: per-channel weights, per-token dynamic activations, the same bits everywhere. The floor."""

from __future__ import annotations

from adatsq_pipe.stages.methods._recipe import Recipe

RECIPE = Recipe(
    transform="none",
    transform_block=1,
    permuted=False,
    codebook=False,
    smoothing="none",
    smoothing_alpha=0.5,
    smoothing_grid=1,
    smoothing_over="all",
    smoothing_skip=(),
    smoothing_fold=False,
    rank=0,
    rank_rounds=1,
    sensitivity="step",
    temporal=False,
    solver="rtn",
    weight_bits=4,
    weight_budget=0.0,
    weight_group=0,
    group_fit=False,
    group_search=(),
    weight_symmetric=False,
    weight_clip=False,
    conditioning_bits=4,
    conditioning_group=64,
    activation_symmetric=False,
    activation_group=0,
    time_groups=0,
    time_search=False,
    regions=False,
    allocation="uniform",
    activation_bits=4,
)

STATIC: dict[str, object] = {"time_groups": 1, "time_search": False}
VARIANTS: tuple[dict[str, object], ...] = ({"weight_clip": True}, STATIC)
"""Searched clipping of the weights; one calibrated scale for a layer's input (the baseline of PTQ4DiT and TQ-DiT)."""
