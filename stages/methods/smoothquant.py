"""SmoothQuant (2211.10438): input channels divided by s_j = max|X_j|^a / max|W_j|^(1-a), a = 0.5; round to nearest.

Faithful: the factors, from the absolute maxima of all calibration tokens. Ours: they are applied to the input on the
fly rather than folded into the norm before it (a DiT's modulation stands between); weights have a scale per
channel and activations one per token, at every step its own; modulation layers as in the other recipes.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(update={"smoothing": "smoothquant", "smoothing_alpha": 0.5})

VARIANTS: tuple[dict[str, object], ...] = ({"smoothing_alpha": 0.3}, {"smoothing_alpha": 0.7})
"""The exponent."""
