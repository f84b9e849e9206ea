"""AdaTSQ (2602.09883): GPTQ under temporal-Fisher-weighted Hessians, activation bits searched over timesteps.

The paper leaves the base open. Ours: online block Hadamard, per-token asymmetric dynamic activations, per-channel
asymmetric weights with searched clipping; adaLN modulation weight-only at 4 bits in groups of 64.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods._recipe import Recipe

RECIPE = Recipe(
    transform="hadamard",
    transform_block=128,
    permuted=False,
    codebook=False,
    smoothing="none",
    smoothing_alpha=0.5,
    rank=0,
    rank_rounds=1,
    temporal=True,
    solver="gptq",
    weight_bits=4,
    weight_group=0,
    weight_symmetric=False,
    weight_clip=True,
    conditioning_bits=4,
    conditioning_group=64,
    activation_symmetric=False,
    activation_group=0,
    allocation="trellis",
    activation_bits=4,
)
