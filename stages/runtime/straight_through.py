"""StraightThrough: a quantized linear whose backward pass takes rounding for the identity.

Rounding has no useful gradient of its own: it is zero almost everywhere. Only what runs with autograd on comes here, so
that a LoRA can be trained through quantized layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

if TYPE_CHECKING:
    from adatsq_pipe.stages.runtime.linear import QuantizedLinear


class StraightThrough(torch.autograd.Function):
    """`layer.compute(x)`; the gradient of `x` is that of the dequantized linear. Saves no tensor."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, bias: Tensor | None, layer: QuantizedLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype  # type: ignore[attr-defined]
        return layer.compute(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        layer, (needs_x, needs_bias, _) = ctx.layer, ctx.needs_input_grad  # type: ignore[attr-defined]
        grad_x = input_gradient(layer, grad.to(ctx.dtype)) if needs_x else None  # type: ignore[attr-defined]
        grad_bias = grad.flatten(0, -2).sum(0).to(layer.bias.dtype) if needs_bias else None
        return grad_x, grad_bias, None


def input_gradient(layer: QuantizedLinear, grad: Tensor) -> Tensor:
    """The gradient [..., in] of the input of `layer`, of the gradient [..., out] of its output, in the dtype of `grad`.

    Weights are unpacked again, some rows at a time, unless the layer holds them unpacked.
    """
    if layer.execution == "simulate":
        found = grad @ layer.weight_as(grad.dtype)
    else:
        found = torch.zeros(*grad.shape[:-1], layer.in_features, dtype=grad.dtype, device=grad.device)
        for part in layer.parts():
            found += grad[..., part] @ layer.weight_rows(part, grad.dtype)
    if layer.spec.rank:
        found = found + grad @ layer.up.to(grad.dtype) @ layer.down.to(grad.dtype)
    return layer.transform_back(found)
