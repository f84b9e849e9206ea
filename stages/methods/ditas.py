"""DiTAS (2409.07756): smoothing by peaks over all timesteps, its strength from a grid, a branch of rank 32; to nearest.

Read: the abstract, and the authors' code (github.com/DZY122/DiTAS: LinearQuant, QuantDiT, utils_qaunt). Faithful: an
input channel's size is its peak over all steps; of 21 exponents a layer takes the one whose output, tokens rounded,
errs least over all steps; a branch of rank 32 after ten alternations with the residual, nothing trained. Ours: factors
take the peak of the whole weight (there of the rounded residual); the weight is rounded after smoothing, in groups of
32 inputs (there before it, a column in groups of 32 outputs); the branch takes tokens unrounded; a token has its own
scale (there all tokens of a call share one); factors are applied at run time, not folded. Made for W4A8.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(
    update={
        "smoothing": "smoothquant",
        "smoothing_grid": 21,
        "smoothing_error": "tokens",
        "rank": 32,
        "rank_rounds": 10,
        "weight_group": 32,
    }
)

VARIANTS: tuple[dict[str, object], ...] = (
    {"smoothing_grid": 1},
    {"smoothing_error": "weight"},
    {"smoothing_over": "noisiest"},
    {"rank": 0},
)
"""The exponent 0.5 in all layers, exponents by the weight's error alone, peaks at the noisiest step, no branch."""
