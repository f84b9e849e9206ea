"""How far one tensor is from another."""

from __future__ import annotations

import math

from torch import Tensor


def relative_error(x: Tensor, reference: Tensor) -> float:
    """|x - reference|^2 / |reference|^2, in float64."""
    reference = reference.double()
    return float((x.double() - reference).square().sum() / reference.square().sum().clamp(min=1e-300))


def mean_log_error(x: Tensor, reference: Tensor, samples: int) -> float:
    """The mean over samples of the logarithm of their relative error, so that one that went astray does not decide.

    Tensors are [samples, ...] or [samples x frames, ...].
    """
    pairs = zip(x.reshape(samples, -1), reference.reshape(samples, -1), strict=True)
    return sum(math.log(max(relative_error(one, other), 1e-30)) for one, other in pairs) / samples


def psnr(x: Tensor, reference: Tensor, *, peak: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal tensors."""
    mean = float((x.double() - reference.double()).square().mean())
    return math.inf if mean == 0 else 10 * math.log10(peak * peak / mean)
