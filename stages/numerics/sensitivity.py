"""Temporal Fisher information: of one layer at one timestep, and the weights over timesteps that follow from it.

Source: AdaTSQ (2602.09883), sec. 3.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.transform import BF16_ON_CPU


def squared_gradient_mean(x_NI: Tensor, g_NO: Tensor) -> Tensor:
    """Mean over the weight's entries of (dL/dW)^2 = (g^T x)^2, a float64 scalar: the diagonal empirical Fisher.

    `x_NI` [..., in] are the inputs and `g_NO` [..., out] the output gradients of one linear over all tokens of a batch.
    With a label-free loss whose noise is independent from sample to sample, the square of the batch's gradient has the
    expectation of the sum of samples' squares, so no loop over samples is needed. Where both are bfloat16 their
    product is too, which changes the mean by less than 1e-4 of itself.
    """
    x, g = x_NI.flatten(0, -2), g_NO.flatten(0, -2)
    if x.dtype == g.dtype == torch.bfloat16 and (x.is_cuda or BF16_ON_CPU):
        gradient_OI = (g.T @ x).float()  # what is rounded off is random from entry to entry
        return gradient_OI.square_().sum(1).sum(dtype=torch.float64) / gradient_OI.numel()
    return (g.float().T @ x.float()).double().square_().mean()


def effective_steps(alpha_T: Tensor) -> float:
    """exp of the entropy of `alpha_T` [steps], weights that sum to one: T if they are equal, 1 if one has all."""
    positive = alpha_T[alpha_T > 0]
    return math.exp(-(positive * positive.log()).sum().item())


def temporal_weights(fisher_T: Tensor, *, effective: float) -> tuple[Tensor, float]:
    """alpha = softmax over timesteps of I / tau, with tau such that the effective number of steps is `effective`.

    `fisher_T` [steps] holds a layer's Fisher scores. The paper gives no tau; this choice is ours. Returns (alpha_T
    float64 [steps], tau). Equal scores, or `effective` >= T, give equal weights and tau = inf.
    """
    scores = fisher_T.double()
    steps = scores.numel()
    spread = (scores.max() - scores.min()).item()
    if effective >= steps or spread <= 0:
        return torch.full_like(scores, 1 / steps), math.inf
    low, high = spread * 1e-4, spread * 1e4
    for _ in range(80):
        tau = math.sqrt(low * high)
        if effective_steps(torch.softmax((scores - scores.max()) / tau, 0)) < effective:
            low = tau
        else:
            high = tau
    tau = math.sqrt(low * high)
    return torch.softmax((scores - scores.max()) / tau, 0), tau
