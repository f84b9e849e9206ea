"""SVDQuant (2411.05007): smoothing, a branch of rank 32 beside a 4-bit residual in groups of 64, weights and inputs.

Faithful: rank, groups, the smoothing exponent of every layer out of 20 by its output error with the branch present,
the alternation of branch and residual while the output error falls (at most 100 rounds), modulation layers
weight-only. Ours: the output error is taken under the inputs' Gram matrix, activations unrounded; grids are asymmetric,
which stands for its unsigned shift after GELU. A width that 64 does not divide is refused (recipe.group_fit helps).
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(
    update={
        "smoothing": "smoothquant",
        "smoothing_grid": 20,
        "rank": 32,
        "rank_rounds": 100,
        "weight_group": 64,
        "activation_group": 64,
    }
)

VARIANTS: tuple[dict[str, object], ...] = ({"rank": 8}, {"rank": 2})
"""The rank: 32 is a hundredth of FLUX's width and a quarter of a small model's."""
