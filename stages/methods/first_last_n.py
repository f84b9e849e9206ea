"""first_last_n: 16-bit activations in the first and the last n steps, few bits between: the policy of today's engines.

vLLM-Omni, SGLang and TensorRT-LLM read it as `diffusion_step_policy` of type first_last_n; `adatsq-pipe export --format
step-policy` writes it. There is no paper. Ours: the layers below it, those of `endpoint` with uniform weight bits, so
that the policy alone differs; and n = 2. Of T steps with b bits between, the mean is b + 2 n (16 - b) / T: with n = 2
and 4 bits 4.96 of 50 steps. A fair row of our own has that mean as its search.budget. With end_steps = 0 it is the
other way round: n is the largest whose mean is at most search.budget, which needs a b below the budget.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.adatsq import RECIPE as ADATSQ

RECIPE = ADATSQ.model_copy(update={"temporal": False, "allocation": "first_last", "end_steps": 2})

VARIANTS: tuple[dict[str, object], ...] = (
    {"end_steps": 1},
    {"end_steps": 4},
    {"activation_bits": 3, "end_steps": 0},
    {"activation_bits": 2, "end_steps": 0},
)
"""The number of steps, and two that keep to the budget: as many ends as it pays for with 3 or 2 bits between."""
