"""ConvRot (2512.03673): regular Hadamard rotation in groups of 256 channels, weights and tokens rounded to nearest.

Faithful: the rotation, whose matrix has equal sums in all rows and columns, in groups of channels; no training, no
feedback, no allocation. Ours: groups of 256, or where that does not divide the width the largest power of four;
weights per output channel and tokens are symmetric; modulation layers at 4 bits in groups of 64 with whole activations.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(
    update={"transform": "regular", "transform_block": 256, "weight_symmetric": True, "activation_symmetric": True}
)

VARIANTS: tuple[dict[str, object], ...] = ({"transform_block": 64}, {"transform_block": 16}, {"transform": "hadamard"})
"""The group, and Sylvester's matrix, whose first column adds up all channels."""
