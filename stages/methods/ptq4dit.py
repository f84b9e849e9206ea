"""PTQ4DiT (2405.16005): channels balanced between input and weight by their salience over timesteps; round to nearest.

Faithful: the balance B_X = sqrt(s_X s_W) / s_X with its inverse in the weight, salience weighted over timesteps by
Spearman's rho, folded into the modulation or the value projection before, the second linear of a feed-forward left
alone. Ours: where the layer before is none of these the input is balanced on the fly; activations have a scale per
token; no reconstruction of blocks. Its targets are W8A8 and W4A8.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN
from adatsq_pipe.stages.methods.rtn import STATIC

RECIPE = RTN.model_copy(
    update={
        "smoothing": "smoothquant",
        "smoothing_alpha": 0.5,
        "smoothing_over": "salience",
        "smoothing_skip": ("net.2", "w2", "proj_out"),
        "smoothing_fold": True,
    }
)

VARIANTS: tuple[dict[str, object], ...] = ({"weight_clip": True}, {"solver": "gptq"}, STATIC)
"""Searched clipping of the weights; weights solved by their layer's output, for the blocks' reconstruction that the
paper has; one calibrated scale for a layer's input, where balancing corrects more."""
