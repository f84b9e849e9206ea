"""HTG (2503.06930): channels shifted by a vector for each group of adjacent timesteps, then scaled; round to nearest.

Read: the abstract, and two public reimplementations that cite the paper's equations and algorithms; we found no code
of the authors. Faithful, as those have it: a step's shift is half way between the least and the largest value of each
channel; agglomerative clustering of adjacent steps by the distance of their mean shifts; a group's shift is the mean of
its steps'; one scale for all groups, sqrt(m / max|W|), with m the shifted input's peak averaged over timesteps with a
momentum of 0.99; layers after GELU are left alone. Ours: five groups, a tenth of 50 steps, for every input its own; the
shift and the scale are applied at run time, not absorbed by the modulation before; extremes are those of the sampled
rows; tokens have scales of their own. Made for W8A8 and W4A8.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(
    update={
        "smoothing": "smoothquant",
        "smoothing_over": "momentum",
        "smoothing_layers": "not_gelu",
        "shift_groups": 5,
    }
)

VARIANTS: tuple[dict[str, object], ...] = (
    {"shift_groups": 0},
    {"shift_groups": 1},
    {"shift_groups": 10},
    {"shift_groups": 25},
    {"smoothing": "none"},
)
"""No shift, one for all timesteps, fewer and more groups, and the shift alone."""
