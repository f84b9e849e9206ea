"""TaQ-DiT (2411.14172): after GELU, channels are shifted with a momentum and outliers among them migrate to the weight.

Read: the abstract, and the shift and the migration in the authors' code. Faithful: the shift starts half way between
the extremes of each channel and follows those of batches over all timesteps with a momentum of 0.95; outlier channels
are divided by a whole number, the ratio of their range to that of the others, which the weight's columns are multiplied
by. Ours: eight batches; which channels are outliers follows from the least output error of the rounded layer (the
authors' lists are fixed), and the ratio from ranges, where they learn it in a joint reconstruction of weights and
scales that is left out here; the bias makes up for the shift in full precision; tokens have scales of their own. A
layer is one after GELU if its sampled inputs have GELU's range. Made for W4A8.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(
    update={"smoothing": "migration", "smoothing_layers": "gelu", "shift_groups": 1, "shift_momentum": 0.95}
)

VARIANTS: tuple[dict[str, object], ...] = (
    {"smoothing": "none"},
    {"shift_groups": 0, "shift_momentum": 0.0},
    {"shift_momentum": 0.0},
    {"solver": "gptq"},
)
"""The shift alone, the migration alone, the mean over timesteps for the momentum, and weights solved by their layer's
output, in place of the reconstruction."""
