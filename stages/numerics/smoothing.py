"""Smoothing: moving the size of outlying input channels into the weight.

An input is divided by s, the weight's columns are multiplied by it: x W^T = (x / s) (W s)^T.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-5


def smoothquant(peak_x_I: Tensor, w_OI: Tensor, *, alpha: float) -> Tensor:
    """s [in] = max|X_j|^alpha / max|W_j|^(1 - alpha) (SmoothQuant, 2211.10438, eq. 4); 1 where a channel is dead."""
    peak_x, peak_w = peak_x_I.double(), w_OI.double().abs().amax(0)
    alive = (peak_x > 0) & (peak_w > 0)
    s = peak_x.clamp(min=_LEAST).pow(alpha) / peak_w.clamp(min=_LEAST).pow(1 - alpha)
    return torch.where(alive, s, torch.ones_like(s))
