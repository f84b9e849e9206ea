"""How far one tensor is from another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

AT_ONCE = 2**24
"""Numbers that are compared at once, in float64: a clip of 81 frames of 480 x 832 would take .8 GB for each of them."""


def relative_error(x: Tensor, reference: Tensor) -> float:
    """|x - reference|^2 / |reference|^2 of two tensors of one shape, in float64."""
    return float(squared_distance(x, reference) / _sum_of_squares(reference).clamp(min=1e-300))


def squared_distance(x: Tensor, reference: Tensor) -> Tensor:
    """|x - reference|^2 of two tensors of one shape, in float64, by parts of AT_ONCE numbers.

    Raises ValueError for other shapes.
    """
    if x.shape != reference.shape:
        raise ValueError(f"tensors of the shapes {list(x.shape)} and {list(reference.shape)} have no distance")
    pairs = zip(_parts(x), _parts(reference), strict=True)
    return torch.stack([(part.double() - other.double()).square().sum() for part, other in pairs]).sum()


def _sum_of_squares(x: Tensor) -> Tensor:
    return torch.stack([part.double().square().sum() for part in _parts(x)]).sum()


def _parts(x: Tensor) -> Sequence[Tensor]:
    return [x] if x.numel() <= AT_ONCE else x.reshape(-1).split(AT_ONCE)


def mean_log_error(x: Tensor, reference: Tensor, samples: int) -> float:
    """The mean over samples of the natural logarithm of their relative error, so that one outlier does not decide.

    Tensors are [samples, ...] or [samples x frames, ...]. A relative error counts as at least 1e-30.
    """
    pairs = zip(x.reshape(samples, -1), reference.reshape(samples, -1), strict=True)
    return sum(math.log(max(relative_error(sample, other), 1e-30)) for sample, other in pairs) / samples


def psnr(x: Tensor, reference: Tensor, *, peak: float) -> float:
    """Peak signal-to-noise ratio, 10 log10(peak^2 / mean squared error), in dB; infinite for equal tensors."""
    mean = float(squared_distance(x, reference) / x.numel())
    return math.inf if mean == 0 else 10 * math.log10(peak * peak / mean)
