"""QuaRot (2404.00456): Hadamard rotation of every input, GPTQ with searched clipping, symmetric per-token activations.

Faithful: rotation by the full width where that is a power of two, GPTQ (damping 1 %, clipping by |e|^2.4), symmetric
grids, all timesteps alike. Ours: where the width is no power of two the rotation is by its largest block that is;
the rotation is not folded into a norm (a DiT's modulation stands between) and not randomised; no key-value cache.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.adatsq import RECIPE as ADATSQ

RECIPE = ADATSQ.model_copy(
    update={
        "transform_block": 4096,
        "weight_symmetric": True,
        "activation_symmetric": True,
        "temporal": False,
        "allocation": "uniform",
    }
)

VARIANTS: tuple[dict[str, object], ...] = ({"transform_block": 128}, {"transform_block": 32})
"""The rotation's block."""
