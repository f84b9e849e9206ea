"""Products of float32 by the faster library: against float64, and where torch's own has to be used."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adatsq_pipe.stages.numerics import products
from adatsq_pipe.stages.numerics.products import Linear, linear, times_symmetric, use_faster_products

SHAPE = (6, 40, 128)
OUT = 96


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, W and b whose product is large enough for the faster library."""
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(SHAPE, generator=random), torch.randn(OUT, SHAPE[-1], generator=random)
    return x.to(dtype), weight.to(dtype), torch.randn(OUT, generator=random).to(dtype)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what goes to the faster library, as if this CPU had it."""
    found = list[torch.Size]()

    def product(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: object) -> Tensor:
        found.append(x.shape)
        return functional.linear(x, weight, bias)

    monkeypatch.setattr(products, "ONEDNN", True)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", product, raising=False)
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("turned", [False, True], ids=["", "a transposed weight"])
def test_a_product_is_that_of_float64(bias: bool, turned: bool) -> None:
    x, weight, b = _inputs()
    weight = weight.T.contiguous().T if turned else weight
    wanted = torch.einsum("...i,oi->...o", x.double(), weight.double()) + (b.double() if bias else 0)

    found = linear(x, weight, b if bias else None)

    assert found.dtype == torch.float32 and found.shape == (*SHAPE[:-1], OUT)
    assert (found - wanted).abs().max() < 2e-6 * wanted.abs().max()


def test_a_large_product_of_float32_goes_to_the_faster_library(called: list[torch.Size]) -> None:
    x, weight, b = _inputs()

    linear(x, weight, b)

    assert called == [x.shape]


def test_small_products_other_dtypes_and_gradients_are_torchs_own(called: list[torch.Size]) -> None:
    x, weight, b = _inputs()
    few = x[:1, :1]
    half = _inputs(torch.bfloat16)
    along = x.clone().requires_grad_()

    assert torch.equal(linear(few, weight, b), functional.linear(few, weight, b))
    assert torch.equal(linear(*half), functional.linear(*half))
    linear(along, weight, b).sum().backward()

    assert along.grad is not None and torch.allclose(along.grad, weight.sum(0).expand(SHAPE), atol=1e-4)
    assert not called


def test_a_weight_that_is_a_part_of_another_is_torchs_own(called: list[torch.Size]) -> None:
    x, weight, b = _inputs()
    wide = torch.cat([weight, weight], 1)
    part = wide[:, : SHAPE[-1]]

    assert torch.equal(linear(x, part, b), functional.linear(x, part, b))
    assert not called  # oneDNN would take a thousand times as long


def test_no_gradient_is_lost_to_a_weight_that_wants_one(called: list[torch.Size]) -> None:
    x, weight, b = _inputs()
    weight.requires_grad_()

    linear(x, weight, b).sum().backward()

    assert weight.grad is not None and torch.allclose(weight.grad[0], x.sum((0, 1)), atol=1e-3)
    assert not called


def test_no_gradient_is_lost_to_a_bias_that_wants_one(called: list[torch.Size]) -> None:
    x, weight, b = _inputs()
    b.requires_grad_()

    linear(x, weight, b).sum().backward()

    assert b.grad is not None and b.grad.tolist() == [SHAPE[0] * SHAPE[1]] * OUT
    assert not called


def test_a_row_is_the_same_whatever_its_neighbours() -> None:
    x, weight, b = _inputs()
    rows = x.flatten(0, 1).repeat(8, 1)

    assert torch.equal(linear(rows[:200], weight, b), linear(rows, weight, b)[:200])


@pytest.mark.parametrize(
    ("rows", "dtype", "taken"), [(4096, torch.float32, True), (40, torch.float32, False), (4096, torch.float64, False)]
)
def test_a_symmetric_matrix_is_multiplied_by_even_if_it_is_part_of_another(
    called: list[torch.Size], rows: int, dtype: torch.dtype, taken: bool
) -> None:
    random = torch.Generator().manual_seed(1)
    x, part = (torch.randn(n, 32, generator=random).to(dtype) for n in (rows, 32))
    large = torch.zeros(64, 64, dtype=dtype)
    large[:32, :32] = part + part.T
    found = times_symmetric(x, large[:32, :32])
    assert called == ([x.shape] if taken else [])
    torch.testing.assert_close(found.double(), x.double() @ (part + part.T).double(), rtol=1e-5, atol=1e-4)


def test_plain_float32_layers_of_a_model_are_told_to_use_it(called: list[torch.Size]) -> None:
    x, weight, b = _inputs()
    model = nn.Sequential(nn.Linear(SHAPE[-1], OUT), nn.Linear(OUT, 8).bfloat16(), nn.LayerNorm(OUT))
    model[0].load_state_dict({"weight": weight, "bias": b})
    names = list(model.state_dict())

    use_faster_products(model)
    other = copy.deepcopy(model[0]).requires_grad_(False)
    other.weight.mul_(2)
    with torch.no_grad():
        found = model[0](x)

    assert [type(layer) for layer in model] == [Linear, nn.Linear, nn.LayerNorm]
    assert called == [x.shape] and torch.equal(found, functional.linear(x, weight, b))
    assert list(model.state_dict()) == names and isinstance(other, nn.Linear)
    assert torch.equal(other(x), functional.linear(x, 2 * weight, b))
