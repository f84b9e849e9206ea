"""How far one tensor is from another."""

from __future__ import annotations

import math

from torch import Tensor


def relative_error(x: Tensor, reference: Tensor) -> float:
    """|x - reference|^2 / |reference|^2 of two tensors of one shape, in float64."""
    reference = reference.double()
    return float((x.double() - reference).square().sum() / reference.square().sum().clamp(min=1e-300))


def mean_log_error(x: Tensor, reference: Tensor, samples: int) -> float:
    """The mean over samples of the natural logarithm of their relative error, so that one outlier does not decide.

    Tensors are [samples, ...] or [samples x frames, ...]. A relative error counts as at least 1e-30.
    """
    pairs = zip(x.reshape(samples, -1), reference.reshape(samples, -1), strict=True)
    return sum(math.log(max(relative_error(sample, other), 1e-30)) for sample, other in pairs) / samples


def psnr(x: Tensor, reference: Tensor, *, peak: float) -> float:
    """Peak signal-to-noise ratio, 10 log10(peak^2 / mean squared error), in dB; infinite for equal tensors."""
    mean = float((x.double() - reference.double()).square().mean())
    return math.inf if mean == 0 else 10 * math.log10(peak * peak / mean)
