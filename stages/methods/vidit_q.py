"""ViDiT-Q (2406.02540): channels balanced where the noise is greatest, rotated, bits by layer and kind of layer.

Faithful: per-channel weights rounded to nearest, per-token dynamic activations, smoothing by the peaks of the noisiest
step, then a Hadamard rotation; mixed precision decoupled by what a layer affects, ranked inside each kind, under a
budget of mean bits. Ours: a layer's sensitivity is the error of the denoiser's output, the kinds are layers that see
the condition, other attention, and the rest (its metrics are CLIP, flow and quality scores of videos); a rotation by
the largest power of two that divides the width.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(
    update={
        "transform": "hadamard",
        "transform_block": 4096,
        "smoothing": "smoothquant",
        "smoothing_alpha": 0.5,
        "smoothing_over": "noisiest",
        "allocation": "decoupled",
    }
)

VARIANTS: tuple[dict[str, object], ...] = (
    {"smoothing_alpha": 0.3},
    {"smoothing_alpha": 0.7},
    {"allocation": "uniform"},
)
"""The exponent, and the same bits for every layer."""
