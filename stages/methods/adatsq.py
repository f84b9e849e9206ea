"""AdaTSQ (2602.09883): GPTQ under temporal-Fisher-weighted Hessians, activation bits searched over timesteps.

The paper leaves the base open. Ours: online block Hadamard, per-token asymmetric dynamic activations, per-channel
asymmetric weights with searched clipping; adaLN modulation weight-only at 4 bits in groups of 64; how many layers of a
step get the higher bits (the candidates that the trellis chooses from, numerics/policy.bits_by_fisher).
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(
    update={
        "transform": "hadamard",
        "transform_block": 128,
        "temporal": True,
        "solver": "gptq",
        "weight_clip": True,
        "allocation": "trellis",
    }
)

VARIANTS: tuple[dict[str, object], ...] = (
    {"allocation": "uniform"},
    {"temporal": False},
    {"allocation": "uniform", "temporal": False},
    {"weight_group": 64, "activation_group": 64},
)
"""Ablations: bits uniform, timesteps alike in the Hessian, both. And the size that Q-DiT and a narrow SVDQuant have."""
