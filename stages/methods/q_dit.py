"""Q-DiT (2406.17343): weights and activations in groups of input channels, the group's size searched for every layer.

Faithful: asymmetric grids of groups, dynamic for activations, round to nearest; an evolutionary search of the group
sizes out of {32, 64, 128, 192, 288} with their mean held at 128. Ours: the search is led by the layers' output errors
on calibration rows (the paper draws pictures and takes their Frechet distance); a size that does not divide a layer's
width stands for the largest divisor below it.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.rtn import RECIPE as RTN

RECIPE = RTN.model_copy(
    update={"weight_group": 128, "activation_group": 128, "group_fit": True, "group_search": (32, 64, 128, 192, 288)}
)

VARIANTS: tuple[dict[str, object], ...] = ({"weight_group": 64, "activation_group": 64},)
"""The mean group size."""
