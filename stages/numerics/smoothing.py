"""Smoothing: moves the magnitude of outlier input channels into the weight.

The input is divided by s [in] and the weight's columns are multiplied by it: x W^T = (x / s) (W s)^T (SmoothQuant,
2211.10438, eq. 3). PTQ4DiT (2405.16005) replaces the input's absolute maximum by a salience over timesteps, HTG
(2503.06930) by a moving average over them. TaQ-DiT (2411.14172) divides outlier channels alone, by whole numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-5
KEPT = 0.99
"""What a moving average over timesteps keeps of the steps before (HTG)."""


def smoothquant(peak_x_I: Tensor, w_OI: Tensor, *, alpha: float) -> Tensor:
    """s = max|X_j|^alpha / max|W_j|^(1 - alpha), float64 [in] (SmoothQuant, eq. 4); 1 where a channel is all zero.

    `peak_x_I` [in] is max|X_j|, or another salience of the input channels; `w_OI` is [out, in].
    """
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
    """sum_t eta_t max|X_t|, eta = softmax_t(-rho_t), float64 [in] (PTQ4DiT, Spearman's rho-guided calibration).

    `peaks_TI` [steps, in] holds max|X_t|. rho_t is Spearman's correlation over channels of max|X_t| and max|W|: where
    the large channels of input and weight differ, balancing helps most, so those steps count more.
    """
    peak_w = w_OI.double().abs().amax(0)
    rho = torch.tensor([spearman(peaks, peak_w) for peaks in peaks_TI], dtype=torch.float64)
    eta = torch.softmax(-rho, 0).to(peaks_TI.device)
    return (eta.unsqueeze(1) * peaks_TI.double()).sum(0)


def moving_average(peaks_TI: Tensor) -> Tensor:
    """m_t = .99 m_(t-1) + .01 max|X_t| after the last step, from m = max|X| of the first, float64 [in] (HTG).

    `peaks_TI` [steps, in] holds max|X_t| in the order of the denoising loop.
    """
    found = peaks_TI[0].double()
    for peaks in peaks_TI[1:].double():
        found = KEPT * found + (1 - KEPT) * peaks
    return found


def whole_factors(peak_I: Tensor, outliers: int) -> Tensor:
    """What outlier channels are divided by: their peak over the largest of the others', to the nearest whole number and
    at least 1, float64 [in] (TaQ-DiT). `outliers` (less than in) channels of the largest `peak_I` [in] are outliers."""
    largest = peak_I.double().sort(descending=True).values[outliers].clamp(min=_LEAST)
    return torch.round(peak_I.double() / largest).clamp(min=1)
