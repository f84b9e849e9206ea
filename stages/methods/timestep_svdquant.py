"""Timestep-aware SVDQuant-GPTQ (2605.27003): SVDQuant, its residual by GPTQ, a clipping ratio by bin of timesteps.

Faithful, as its abstract has it: a low-rank branch that takes the outliers, GPTQ on the residual, and for every layer
and bin of timesteps a searched ratio that narrows the range of the activations (every denoiser of a pipeline with
several has its own layers, and so its own ratios). Ours, because we read no more of it: five bins of equal length,
ratios from 1 down to 0.4, chosen by the output error of the residual's codes; ranges are those of each token's groups
of 64. The rest is `svdquant`.
"""

from __future__ import annotations

from adatsq_pipe.stages.methods.svdquant import RECIPE as SVDQUANT

RECIPE = SVDQUANT.model_copy(update={"solver": "gptq", "clip_bins": 5})

VARIANTS: tuple[dict[str, object], ...] = ({"clip_bins": 0}, {"clip_bins": 1}, {"clip_bins": 10})
"""No clipping, one ratio for all timesteps, and twice the bins."""
