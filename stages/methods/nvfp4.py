"""NVFP4, simulated: weights and tokens in 4-bit floats, blocks of 16 with E4M3 scales, rounded to nearest.

Faithful: the numbers that Blackwell's tensor cores multiply (see numerics/float4.py). Ours: products are computed in
the model's dtype; modulation layers are at 4 bits in groups of 64 with whole activations. Only W4A4: the format has no
other width. An input width that 16 does not divide is refused.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(update={"number_format": "nvfp4"})

VARIANTS: tuple[dict[str, object], ...] = ({"transform": "hadamard", "transform_block": 16},)
"""A rotation inside the blocks."""
