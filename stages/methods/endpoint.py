"""Endpoint (ours): bits where the final picture needs them, of activations by step and layer, of weights by layer.

New over AdaTSQ (GPTQ, block Hadamard, per-token activations): sensitivities are effects on the *final* latents, from a
gradient carried back through the pipeline's own sampling loop, where AdaTSQ takes Fisher scores of single steps.
Activation bits are the exact Lagrangian division of the budget over steps and layers. A layer's effects add up over
steps with their signs: few bits err alike at every step and so cost more than single steps say, and weights, the same
at every step, get their bits by layer. In the Hessian all timesteps count alike: `temporal = true` weighs them by the
sweep's scores. It rests on the adjoint of a discrete dynamic system (Pontryagin 1962; neural ODEs, 1806.07366) and on
Lagrangian bit allocation (Shoham and Gersho 1988).
"""

from __future__ import annotations

from typing import Any

from adatsq_pipe.stages.methods.adatsq import RECIPE as ADATSQ

RECIPE = ADATSQ.model_copy(
    update={"sensitivity": "trajectory", "temporal": False, "allocation": "lagrangian", "weight_budget": 4.0}
)

VARIANTS: tuple[dict[str, Any], ...] = (
    {"sensitivity": "step", "weight_budget": 0.0},
    {"weight_budget": 0.0},
    {"allocation": "uniform"},
    {"allocation": "uniform", "weight_budget": 0.0},
    {"temporal": True},
    {"transform": "regular"},
    {"search.bits": [3, 4, 8]},
    {"search.price": "macs"},
    {"search.beam": True},
)
"""Every switch alone: sensitivities of single steps, uniform weight bits, uniform activation bits, both uniform,
Hessians whose timesteps the same sweep weighs, a regular Hadamard matrix, the paper's widths, bits priced by
multiply-accumulates, and a beam."""
