"""The backward pass of quantized linears: the gradient of the linear that they stand for, at any bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adatsq_pipe.stages.runtime import linear
from adatsq_pipe.stages.runtime.linear import EXECUTIONS
from tests.support.quantized_layers import (
    PARTS,
    layer_of,
    random_tensors,
    spec_with,
    transformed_by_hand,
    weight_by_hand,
)

WIDTH, OUT = 48, 20


def jacobian_by_hand(spec: Any, tensors: dict[str, Tensor]) -> Tensor:
    """float64 [out, in]: the weight for the untransformed input, from the outputs for unit vectors."""
    basis = transformed_by_hand(spec, tensors, torch.eye(WIDTH, dtype=torch.float64))
    basis = basis - transformed_by_hand(spec, tensors, torch.zeros(1, WIDTH, dtype=torch.float64))
    out = basis @ weight_by_hand(spec, tensors).T
    if spec.rank:
        out = out + basis @ tensors["down"].double().T @ tensors["up"].double().T
    return out.T


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_the_gradient_is_that_of_the_linear_before_rounding(
    parts: dict[str, Any], execution: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_UNPACKED_AT_ONCE", 7 * WIDTH)
    spec = spec_with(**parts)
    tensors = random_tensors(spec, WIDTH, OUT, 3)
    layer = layer_of(spec, tensors)
    layer.execution = execution
    layer.set_step(step, [3, 16, 8])
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = layer(x)
    x.requires_grad_()
    out = layer(x)
    assert torch.equal(out.detach(), plain), "the forward pass is as without a gradient"
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    out.backward(grad)
    wanted = grad.double() @ jacobian_by_hand(spec, tensors)
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert (x.grad.double() - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("execution", EXECUTIONS[1:])
def test_half_precision_and_a_trained_bias(execution: str) -> None:
    spec = spec_with(block=16, rank=2)
    tensors = random_tensors(spec, WIDTH, OUT, 4)
    layer = layer_of(spec, tensors)
    assert layer.bias is not None
    layer.bias = nn.Parameter(layer.bias.bfloat16())
    layer.execution = execution
    layer.set_step(0, [3, 16, 8])
    x = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    grad = torch.randn(6, OUT, generator=torch.Generator().manual_seed(2)).bfloat16()
    layer(x).backward(grad)
    wanted = grad.double() @ jacobian_by_hand(spec, tensors)
    assert x.grad is not None and x.grad.dtype == torch.bfloat16 and layer.bias.grad is not None
    assert (x.grad.double() - wanted).norm() < 2e-2 * wanted.norm()
    assert (layer.bias.grad.double() - grad.double().sum(0)).norm() < 2e-2 * grad.double().sum(0).norm()


def test_no_unpacked_weight_is_kept_for_the_backward_pass() -> None:
    layer = layer_of(spec_with(), random_tensors(spec_with(), WIDTH, OUT, 5))
    layer.execution = "packed"
    x, saved = torch.randn(4, WIDTH, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        out = layer(x)
    assert not saved and layer._weight is None
    out.sum().backward()


def test_without_a_gradient_nothing_is_recorded() -> None:
    layer = layer_of(spec_with(), random_tensors(spec_with(), WIDTH, OUT, 5))
    assert not layer(torch.ones(1, WIDTH)).requires_grad
    with torch.no_grad():
        assert not layer(torch.ones(1, WIDTH, requires_grad=True)).requires_grad
