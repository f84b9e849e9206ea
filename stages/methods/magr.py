"""MagR (2406.00800): the largest weights pressed down at the least change of the output, then GPTQ.

Faithful: an l-infinity penalty on every output channel beside the layer's output error, minimised by proximal gradient
steps before GPTQ (the paper's MagR + OPTQ); nothing is added at run time. Ours: the penalty is a share of the row's l1
norm, so that it means the same in every layer; the paper quantizes weights of language models alone, here tokens are
rounded to nearest after a Hadamard rotation, as for quarot.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.quarot import RECIPE as QUAROT

RECIPE = QUAROT.model_copy(update={"magnitude_penalty": 0.0001, "weight_symmetric": False})

VARIANTS: tuple[dict[str, object], ...] = (
    {"magnitude_penalty": 0.0},
    {"magnitude_penalty": 0.00001},
    {"magnitude_penalty": 0.001},
)
"""The penalty."""
