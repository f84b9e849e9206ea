"""Temporal Fisher information: what it is for one layer, and the weights over timesteps that follow from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def squared_gradient_mean(x_NI: Tensor, g_NO: Tensor) -> Tensor:
    """Mean over the weight's entries of (dL/dW)^2 = (g^T x)^2, a float64 scalar (AdaTSQ, temporal Fisher).

    `x_NI` inputs and `g_NO` output gradients of one linear over all tokens of a batch. With a label-free loss whose
    noise is independent from sample to sample the expectation is the sum over samples, so no per-sample loop is needed.
    """
    gradient_OI = g_NO.reshape(-1, g_NO.shape[-1]).float().T @ x_NI.reshape(-1, x_NI.shape[-1]).float()
    return gradient_OI.double().square_().mean()


def effective_steps(alpha_T: Tensor) -> float:
    """exp of the entropy of weights that sum to one: T if they are equal, 1 if one has all."""
    positive = alpha_T[alpha_T > 0]
    return math.exp(-(positive * positive.log()).sum().item())


def temporal_weights(fisher_T: Tensor, *, effective: float) -> tuple[Tensor, float]:
    """alpha = softmax over timesteps of I / tau, with tau such that the effective number of steps is `effective`.

    The paper gives no tau (AdaTSQ, sec. 3.2); this choice is ours. Returns (alpha_T float64, tau). Scores that cannot
    be told apart, or `effective` >= T, give equal weights and tau = inf.
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
