"""First-order effects of rounding against loops over rows, tokens and bits in float64."""

from __future__ import annotations

import pytest
import torch

from adatsq_pipe.stages.numerics import effects
from adatsq_pipe.stages.numerics.transform import hadamard
from tests.support import slow_math

BITS = (2, 4, 8)
SHAPES = {"tokens": (3, 5, 16), "frames of tokens": (2, 3, 4, 16), "one vector a row": (4, 16)}


@pytest.mark.parametrize("chunk", [16, 70, 100, 2**18], ids=["tokens", "some tokens", "some rows", "whole"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_effects_of_tokens_are_those_of_each_token_alone(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], chunk: int
) -> None:
    monkeypatch.setattr(effects, "CHUNK", chunk)
    random = torch.Generator().manual_seed(1)
    x, *gradients = (torch.randn(shape, generator=random) for _ in range(3))
    basis = hadamard(8, dtype=torch.float32)
    found = effects.activation_effects(x, gradients, basis, BITS, symmetric=False, group=0)
    for gradient, of_gradient in zip(gradients, found, strict=True):
        assert of_gradient.shape == (shape[0], len(BITS)) and of_gradient.dtype == torch.float64
        for row in range(shape[0]):
            turned, towards = (slow_math.rotated(one[row].reshape(-1, 16), 8) for one in (x, gradient))
            for place, bits in enumerate(BITS):
                rounded = slow_math.token_rounded(turned.float(), bits)
                wanted = float((towards * (rounded - turned)).sum())
                assert float(of_gradient[row, place]) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("chunk", [16, 2**18])
@pytest.mark.parametrize("block", [1, 8])
def test_effects_leave_inputs_and_gradients_as_they_are(
    monkeypatch: pytest.MonkeyPatch, block: int, chunk: int
) -> None:
    monkeypatch.setattr(effects, "CHUNK", chunk)
    known = [torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    x, *gradients = (one.clone() for one in known)
    effects.activation_effects(x, gradients, hadamard(block, dtype=torch.float32), BITS, symmetric=False, group=0)
    effects.weight_effects(x, gradients[0], torch.ones(16, 16))
    for one, before in zip((x, *gradients), known, strict=True):
        assert torch.equal(one, before)


@pytest.mark.parametrize("chunk", [16, 100, 2**18])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_effects_of_a_weight_are_the_gradients_times_the_changed_outputs(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], chunk: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(effects, "CHUNK", chunk)
    random = torch.Generator().manual_seed(2)
    x, gradient = (torch.randn((*shape[:-1], n), generator=random).to(dtype) for n in (16, 24))
    error = torch.randn(24, 16, generator=random).to(dtype)
    found = effects.weight_effects(x, gradient, error)
    assert found.dtype == torch.float64
    for row in range(shape[0]):
        changed = x[row].double() @ error.double().T
        products = gradient[row].double() * changed
        rounding = 2.0**-8 if dtype == torch.bfloat16 else 1e-5
        assert abs(float(found[row] - products.sum())) < rounding * float(products.abs().sum())


def test_chunks_cover_every_token_once() -> None:
    for shape in ((3, 7, 11), (5, 1, 4), (2, 1000, 300), (9, 300, 100), (1, 1, 1)):
        seen = torch.zeros(shape[:2])
        for rows, tokens in effects._chunks(shape, all_at_once=False):
            seen[rows, tokens] += 1
            assert seen[rows, tokens].numel() * shape[2] <= max(effects.CHUNK, shape[2])
        assert (seen == 1).all()
