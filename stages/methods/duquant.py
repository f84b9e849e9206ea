"""DuQuant (2406.01721): smoothing, two greedy block rotations with a zigzag channel order between; round to nearest.

Read: the abstract, and the authors' code (github.com/Hsu1023/DuQuant: get_rot, quantize/, models/, run.sh). Faithful:
SmoothQuant's factors with exponent 0.6; blocks of 128, one rotation for all blocks of a layer; at most 256 greedy
steps, kept up to the one with the least peak; one zigzag order by the channels' peaks; a scale per token and output
channel. Ours: a step takes the channel that holds the largest magnitude, and a peak is a magnitude (the code takes a
row, and the range); a layer has rotations of its own (there q, k and v share them); steps look at the 1024 parts of
sampled inputs with the largest norms; the clipping of weights is searched (there 0.8), tokens are not clipped (there
0.9; `clip_bins` = 1 searches a ratio). The code's learned clipping of weights is left out.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(
    update={
        "transform": "greedy",
        "transform_block": 128,
        "smoothing": "smoothquant",
        "smoothing_alpha": 0.6,
        "weight_clip": True,
    }
)

VARIANTS: tuple[dict[str, object], ...] = (
    {"rotation_steps": 1},
    {"rotation_steps": 16},
    {"transform_block": 32},
    {"transform": "hadamard"},
)
"""Fewer greedy steps, a smaller block, and a Hadamard matrix in their place."""
