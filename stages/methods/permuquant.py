"""PermuQuant (2605.09503): channels sorted by the joint second moment of inputs and weights before they share groups.

Faithful: groups of channels in weights and tokens; the order follows inputs and weights together, and a layer takes it
only where it lowers the error of the output on calibration data. Ours: the moment is the product of the two, the error
is that of rounding to nearest; groups of 64; the order is applied at run time, not absorbed by the layer before (a
DiT's modulation stands between), which costs a gather and no accuracy.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(
    update={"permuted": True, "channel_order": "moment", "weight_group": 64, "activation_group": 64}
)

VARIANTS: tuple[dict[str, object], ...] = (
    {"permuted": False, "channel_order": "random"},
    {"weight_group": 32, "activation_group": 32},
    {"weight_group": 16, "activation_group": 16},
)
"""Channels in their own order, and smaller groups."""
