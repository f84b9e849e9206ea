"""TQ-DiT (2502.04056): calibrated activation scales by groups of timesteps, chosen under the loss's curvature.

Faithful: equal groups of steps with a scale each, weight and activation scales chosen in turn (3 rounds) out of 101
multiples of min-max in [.01, 1.2] by the output error weighted with squared gradients, the fixed finer grid of negative
values after GELU. Ours: gradients are those of the label-free Fisher loss, a mean per output channel and step; 1.0 of
min-max is among the multiples; attention probabilities are no input of a linear layer and stay whole, as in every
recipe here. Its targets are W8A8 and W6A6.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(update={"time_groups": 10, "time_search": True, "regions": True})

VARIANTS: tuple[dict[str, object], ...] = ({"time_groups": 1}, {"time_groups": 25})
"""The groups of timesteps; 1 is a calibrated scale for all of them."""
