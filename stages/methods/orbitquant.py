"""OrbitQuant (2607.02461): random channel order, block Hadamard, unit-norm rows and tokens on one Gaussian codebook.

Faithful: data-free weights, no feedback, no allocation; the codebook is Lloyd-Max for the standard normal, of weights
and of tokens; modulation layers at 4 bits in groups of 64 with whole activations. Ours: a row's or token's norm is kept
as its root mean square; the order of channels is seeded by the layer's name; modulation layers are on a uniform grid.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(update={"transform": "hadamard", "transform_block": 128, "permuted": True, "codebook": True})

VARIANTS: tuple[dict[str, object], ...] = ({"transform_block": 64}, {"transform_block": 32})
"""The rotation's block."""
