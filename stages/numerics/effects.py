"""First-order effects of rounding on a scalar, from the scalar's gradients at a linear layer.

With y = x W^T and a scalar s, an error e of the layer's output changes s by <ds/dy, e> to first order. Rounding the
input to Q(x) is the error (Q(x) - x) W^T, so it changes s by <ds/dx, Q(x) - x>. Rounding the weight to Q(W) changes s
by <ds/dy, x (Q(W) - W)^T>. Signs are kept: effects of a weight add up over timesteps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.grid import token_errors
from adatsq_pipe.stages.numerics.products import linear
from adatsq_pipe.stages.numerics.transform import rotate

CHUNK = 2**18
"""Numbers of an input that a CPU rounds at a time, 1 MiB: they stay in its cache, and calls cost less than the work."""


def activation_effects(
    x_NI: Tensor, gradients: Sequence[Tensor], h_BB: Tensor, widths: Sequence[int], *, symmetric: bool, group: int
) -> list[Tensor]:
    """The effect of rounding each row's tokens to each of `widths` bits, float64 [rows, widths], by gradient.

    `x_NI` [rows, ..., in] is the input of one layer or several, and `gradients`, of its shape, hold the scalar's
    gradient there through each of them. `h_BB` (float32, see `rotate`) takes them to the basis in which tokens
    are rounded.
    """
    found = torch.zeros(len(widths), len(gradients), len(x_NI), dtype=torch.float64, device=x_NI.device)
    tokens = [_tokens(x) for x in (x_NI, *gradients)]
    for rows, part in _chunks(tokens[0].shape, all_at_once=x_NI.device.type != "cpu"):
        x, *turned = (rotate(one[rows, part].float(), h_BB) for one in tokens)
        directions, products = _matrix_of_one_row(turned), torch.empty_like(x)
        errors = token_errors(x, widths, symmetric=symmetric, group=group)
        found[..., rows] -= torch.stack([_row_products(directions, error, products) for error in errors]).double()
    return [found[:, place].T for place in range(len(gradients))]


def weight_effects(x_NI: Tensor, gradient_NO: Tensor, error_OI: Tensor) -> Tensor:
    """The effect of the weight's error `error_OI` on each row, float64 [rows].

    `x_NI` [rows, ..., in] is the layer's input and `gradient_NO` [rows, ..., out] the scalar's gradient at its output.
    The product of input and error is in the error's dtype.
    """
    changed, gradient = (_tokens(one) for one in (linear(x_NI.to(error_OI.dtype), error_OI), gradient_NO))
    found = torch.zeros(len(x_NI), dtype=torch.float64, device=x_NI.device)
    for rows, part in _chunks(changed.shape, all_at_once=x_NI.device.type != "cpu"):
        own = changed[rows, part].float()
        found[rows] += _row_products(_matrix_of_one_row([gradient[rows, part].float()]), own, own)[0].double()
    return found


def _tokens(x: Tensor) -> Tensor:
    """`x` [rows, ..., channels] as [rows, tokens, channels]."""
    return x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)


def _chunks(shape: Sequence[int], *, all_at_once: bool) -> Iterator[tuple[slice, slice]]:
    """Parts (rows, tokens) of a tensor of that `shape` [rows, tokens, channels]: some whole rows, or tokens of one."""
    rows, tokens, channels = shape
    size = max(1, tokens * channels)
    if all_at_once or rows * size <= CHUNK:
        yield slice(0, rows), slice(0, tokens)
    elif size <= CHUNK:
        step = CHUNK // size
        yield from ((slice(row, min(row + step, rows)), slice(0, tokens)) for row in range(0, rows, step))
    else:
        step = -(-tokens // -(-size // CHUNK))  # parts of one size
        for row in range(rows):
            yield from ((slice(row, row + 1), slice(at, min(at + step, tokens))) for at in range(0, tokens, step))


def _row_products(gradients: list[Tensor] | Tensor, errors: Tensor, products: Tensor) -> Tensor:
    """The scalar product of every row of each of `gradients` [rows, ...] with that of `errors`: float32 [k, rows].

    All are float32 of one shape, `products` too, which is overwritten: memory that is in the cache already takes half
    the time of new memory. It may be `errors` if there is one gradient.
    """
    if isinstance(gradients, Tensor) and len(errors) == 1:
        return torch.mv(gradients.flatten(1), errors.flatten()).unsqueeze(1)
    return torch.stack([torch.mul(gradient, errors, out=products).flatten(1).sum(1) for gradient in gradients])


def _matrix_of_one_row(gradients: list[Tensor]) -> list[Tensor] | Tensor:
    """Gradients of a single row as one tensor, which a CPU multiplies by an error at once; others as they are."""
    if len(gradients[0]) > 1 or gradients[0].device.type != "cpu":
        return gradients
    return gradients[0].unsqueeze(0) if len(gradients) == 1 else torch.stack(gradients)


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
