"""The GPU kernels against the definition: on a GPU, or else in the interpreter of Triton if that is installed."""

from __future__ import annotations

import os
from types import ModuleType

import pytest
import torch

from adatsq_pipe.stages.numerics import grid
from adatsq_pipe.stages.numerics.transform import hadamard, rotate
from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.runtime.shared import SharedInput
from adatsq_pipe.stages.runtime.spec import WEIGHT_BITS
from tests.support.quantized_layers import random_layer, spec_with

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU here; with Triton installed, TRITON_INTERPRET=1 runs these on the CPU", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TURNED = torch.bfloat16 if DEVICE == "cuda" else torch.float16
"""Whose products the interpreter knows."""
SHAPES = [(5, 40, 7), (70, 129, 66), (33, 256, 130), (515, 64, 8)]
"""Of two samples each: every tile that there is."""


@pytest.fixture
def kernels() -> ModuleType:
    from adatsq_pipe.stages.runtime import kernels

    return kernels


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Tokens off centre, one of them zero, one with an outlier."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 3 - 1
    x[0, 0] = 0
    x[0, 1, 3] = 300
    return x.to(DEVICE, dtype)


@pytest.mark.parametrize("weights", WEIGHT_BITS)
@pytest.mark.parametrize("activations", [3, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("tokens", "width", "out"), SHAPES)
def test_the_kernels_give_what_the_reference_gives(
    kernels: ModuleType, weights: int, activations: int, symmetric: bool, tokens: int, width: int, out: int
) -> None:
    layer = random_layer(spec_with(weight_bits=weights, symmetric_activations=symmetric), width, out, weights).to(
        DEVICE
    )
    layer.bits, layer.execution = activations, "reference"
    x = drawn(2, tokens, width)
    wanted, got = layer(x), kernels.packed_linear(layer, x)
    assert got.shape == wanted.shape
    assert (got - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block", [1, 16, 128])
def test_tokens_are_rounded_as_everywhere(kernels: ModuleType, bits: int, symmetric: bool, block: int) -> None:
    """Behind a rotation too: every code and scale is that of the slow way, but for sums that end elsewhere."""
    x = drawn(2, 21, 384, dtype=TURNED)
    turn = hadamard(block, dtype=x.dtype) if block > 1 else None
    turned = rotate(x.cpu(), turn) if turn is not None else x.cpu()
    codes, times = grid.token_codes(turned, 2.0**bits - 1, symmetric=symmetric)
    there = turn.to(DEVICE) if turn is not None else None
    got = kernels.TokenCodes(
        *(part.cpu() for part in kernels.token_codes(x, there, qmax=2.0**bits - 1, symmetric=symmetric))
    )
    whole = got.codes.int() + got.offset[:, None]
    assert torch.equal(got.total, whole.sum(1))
    assert (got.times - times.flatten()).abs().max() <= 8e-3 * times.max()
    apart = (whole - codes.flatten(0, 1).int()).abs()
    assert apart.max() <= (1 if turn is not None else 0)
    assert apart.float().mean() <= 0.02


def test_sums_of_codes(kernels: ModuleType) -> None:
    for bits in WEIGHT_BITS:
        layer = random_layer(spec_with(weight_bits=bits), 129, 5, bits).to(DEVICE)
        codes = layer.weight_as(torch.float32) / layer.scale.float() + layer.zero.float()
        less = 128 * 129 if bits == 8 else 0
        assert torch.equal(kernels.code_sums(layer.codes, bits=bits, width=129), codes.round().sum(1).int() - less)


def test_an_empty_batch(kernels: ModuleType) -> None:
    layer = random_layer(spec_with(weight_bits=4), 64, 8, 1).to(DEVICE)
    layer.bits = 4
    assert kernels.packed_linear(layer, torch.zeros(0, 3, 64, device=DEVICE)).shape == (0, 3, 8)


@pytest.mark.parametrize(
    "parts", [{}, {"block": 8}, {"block": 64}, {"smoothed": True, "permuted": True, "block": 32}, {"rank": 4}]
)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-3), (TURNED, 3e-2)])
def test_the_layer_takes_the_kernels(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, parts: dict[str, int], dtype: torch.dtype, within: float
) -> None:
    """On a GPU by itself; in the interpreter it is told to. Half precision moves a few codes by one."""
    layer = random_layer(spec_with(weight_bits=4, **parts), 128, 64, 1).to(DEVICE)
    x, taken = drawn(2, 33, 128, dtype=dtype), []
    packed_linear = kernels.packed_linear
    monkeypatch.setattr(QuantizedLinear, "gpu_kernels", kernels)
    monkeypatch.setattr(kernels, "packed_linear", lambda layer, x: taken.append(1) or packed_linear(layer, x))
    if DEVICE == "cpu":
        monkeypatch.setattr(QuantizedLinear, "_packed", lambda layer, x: kernels.packed_linear(layer, x))
    for bits in (3, 8):
        layer.bits, layer.execution = bits, "reference"
        wanted = layer(x).float()
        layer.execution = "packed"
        got = layer(x)
        assert got.dtype == dtype
        assert (got.float() - wanted).norm() <= within * wanted.norm()
    assert len(taken) == 2


def test_layers_of_one_input_round_it_once(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (random_layer(spec_with(weight_bits=4), 64, 8, seed).to(DEVICE) for seed in (1, 2))
    one.shared = other.shared = SharedInput()
    one.bits = other.bits = 4
    rounded, token_codes = [], kernels.token_codes
    monkeypatch.setattr(kernels, "token_codes", lambda *args, **more: rounded.append(1) or token_codes(*args, **more))
    x = drawn(1, 9, 64)
    first = kernels.packed_linear(one, x)
    kernels.packed_linear(other, x)
    assert len(rounded) == 1
    x.mul_(2)
    assert not torch.equal(kernels.packed_linear(one, x), first)
    assert len(rounded) == 2
