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


def ranks(x: Tensor) -> Tensor:
    """The rank of every value of `x` [n], from 0, float64; equal values share the mean of their ranks."""
    ordered = x.double().sort().values
    below = torch.searchsorted(ordered, x.double(), right=False)
    upto = torch.searchsorted(ordered, x.double(), right=True)
    return (below + upto - 1).double() / 2


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of two vectors [n]: that of their ranks; 0 where one of them is constant."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = float(x.norm() * y.norm())
    return float(x @ y) / size if size > 0 else 0.0


def temporal_salience(peaks_TI: Tensor, w_OI: Tensor) -> Tensor:
    """sum_t eta_t max|X_t|, eta = softmax_t(-rho_t), [in] float64 (PTQ4DiT, 2405.16005, Spearman's rho calibration).

    rho_t is Spearman's correlation over channels of the input's and the weight's absolute maxima: steps at which the
    weight's large channels are not the input's count more, for there balancing helps.
    """
    peak_w = w_OI.double().abs().amax(0)
    rho = torch.tensor([spearman(peaks, peak_w) for peaks in peaks_TI], dtype=torch.float64)
    eta = torch.softmax(-rho, 0).to(peaks_TI.device)
    return (eta.unsqueeze(1) * peaks_TI.double()).sum(0)
