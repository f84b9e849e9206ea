"""First-order effects of rounding on a scalar, from the scalar's gradients at a linear layer.

With y = x W^T and a scalar s, an error e of the layer's output changes s by <ds/dy, e> to first order. Rounding the
input to Q(x) is the error (Q(x) - x) W^T, so it changes s by <ds/dx, Q(x) - x>. Rounding the weight to Q(W) changes s
by <ds/dy, x (Q(W) - W)^T>. Signs are kept: effects of a weight add up over timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.grid import token_errors


def activation_effects(
    x_NI: Tensor, gradients: Sequence[Tensor], widths: Sequence[int], *, symmetric: bool, group: int
) -> list[Tensor]:
    """The effect of rounding each row's tokens to each of `widths` bits, float64 [rows, widths], by gradient.

    `x_NI` [rows, ..., in] is the input of one layer or several, and `gradients` hold the scalar's gradient there
    through each of them, in the basis in which tokens are rounded.
    """
    found: list[list[Tensor]] = [[] for _ in gradients]
    for error in token_errors(x_NI, widths, symmetric=symmetric, group=group):
        for effects, gradient in zip(found[1:], gradients[1:], strict=True):
            effects.append(-_by_row(error * gradient.float()))
        found[0].append(-_by_row(error.mul_(gradients[0].float())))
    return [torch.stack(effects, 1) for effects in found]


def weight_effects(x_NI: Tensor, gradient_NO: Tensor, error_OI: Tensor) -> Tensor:
    """The effect of the weight's error `error_OI` on each row, float64 [rows].

    `x_NI` [rows, ..., in] is the layer's input and `gradient_NO` [rows, ..., out] the scalar's gradient at its output.
    """
    changed = torch.nn.functional.linear(x_NI.float(), error_OI.float())
    return _by_row(changed.mul_(gradient_NO.float()))


def _by_row(products: Tensor) -> Tensor:
    """The sum of every row [rows, ...], float64 [rows]."""
    return products.flatten(1).sum(1).double()


def by_sample(effects_R: Tensor, samples: range, of: int) -> Tensor:
    """Effects [rows, ...] of a call's rows, summed by caption: [of, ...], of `of` captions.

    `samples` are the call's samples that the rows belong to. Guidance makes k x of samples: all captions with the
    prompt, then all without. Rows that cannot be dealt to samples (tokens of several in one row) all count for the
    first caption: sums over captions stay right.
    """
    rows, count = len(effects_R), len(samples)
    if samples.start == 0 and count % of == 0 and rows % count == 0:
        dealt: Tensor = effects_R.unflatten(0, (-1, of)).sum(0)
        return dealt
    out = effects_R.new_zeros(of, *effects_R.shape[1:])
    if rows % count == 0:
        places = torch.tensor([sample % of for sample in samples] * (rows // count), device=out.device)
        return out.index_add_(0, places, effects_R)
    out[0] = effects_R.sum(0)
    return out
