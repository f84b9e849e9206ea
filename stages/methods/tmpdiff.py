"""TMPDiff (2603.14062): one activation width a timestep for the whole model, under a budget of mean bits.

Faithful, as its abstract has it: one precision a step, errors of steps that add up, evaluations linear in the steps, a
bisection in place of trying all policies. Ours, because we read no more of it: a step's error is that of the final
latents with this step alone rounded, against rounded weights alone; the price of a bit is bisected; widths 3, 4 and 8
(`search.bits`; the paper's precisions are those of an engine, up to 16 bits); the layers below it are those of
`endpoint` with uniform weight bits.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.adatsq import RECIPE as ADATSQ

RECIPE = ADATSQ.model_copy(update={"temporal": False, "allocation": "bisection"})

VARIANTS: tuple[dict[str, object], ...] = (
    {"allocation": "uniform"},
    {"search.bits": [2, 3, 4, 5, 6, 8]},
)
"""The same bits at every step, and more widths to choose from."""
