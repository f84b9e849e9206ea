"""GPTQ, packing and rotation against slow, obvious versions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics import gptq, transform
from adatsq_pipe.stages.numerics.grid import Grid, dequantize, quantize, weight_grid
from adatsq_pipe.stages.numerics.packing import pack, packed_bytes, unpack


def _problem(width: int = 24, out: int = 6, rows: int = 200) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    mix = torch.randn(width, width, generator=random, dtype=torch.float64)
    x = torch.randn(rows, width, generator=random, dtype=torch.float64) @ mix
    return torch.randn(out, width, generator=random), x.T @ x


def _naive(w: Tensor, gram: Tensor, grid: Grid, damping: float) -> Tensor:
    """Optimal brain quantization in column order: after each rounding, re-solve the rest exactly."""
    scale, zero = (p.double() for p in grid.columns(w.shape[1]))
    h = gram.clone()
    h.diagonal().add_(damping * h.diagonal().mean())
    left, codes = w.double().clone(), torch.empty_like(w, dtype=torch.float64)
    for i in range(w.shape[1]):
        inverse = torch.linalg.inv(h[i:, i:])
        codes[:, i] = (torch.round(left[:, i] / scale[:, i]) + zero[:, i]).clamp(0, grid.qmax)
        error = (left[:, i] - (codes[:, i] - zero[:, i]) * scale[:, i]) / inverse[0, 0]
        left[:, i + 1 :] -= error.unsqueeze(1) * inverse[0, 1:]
    return codes.to(torch.uint8)


def test_gptq_equals_the_naive_solve() -> None:
    w, gram = _problem()
    grid = weight_grid(w, bits=3, group=0, symmetric=False, clip=True)
    solved = gptq.solve(w, gram, grid, damping=0.01, act_order=False)
    assert torch.equal(solved.codes_OI, _naive(w, gram, grid, 0.01))


@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_beats_rounding(group: int, act_order: bool) -> None:
    w, gram = _problem()
    grid = weight_grid(w, bits=3, group=group, symmetric=False, clip=True)
    scale, zero = grid.columns(w.shape[1])
    nearest = dequantize(quantize(w, scale, zero, grid.qmax), scale, zero)
    solved = gptq.solve(w, gram, grid, damping=0.01, act_order=act_order)
    assert solved.error < 0.9 * gptq.weighted_error(w, nearest, gram)
    assert solved.error == pytest.approx(
        gptq.weighted_error(w, dequantize(solved.codes_OI, scale, zero), gram), rel=1e-6
    )


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    w, gram = _problem()
    grid = weight_grid(w, bits=4, group=0, symmetric=False, clip=False)
    whole = gptq.solve(w, gram, grid, damping=0.01, act_order=True)
    monkeypatch.setattr(gptq, "BLOCK", 5)
    assert torch.equal(gptq.solve(w, gram, grid, damping=0.01, act_order=True).codes_OI, whole.codes_OI)


def test_inputs_that_are_always_zero_are_rounded_to_nearest() -> None:
    w, gram = _problem()
    gram[4, :] = gram[:, 4] = 0
    grid = weight_grid(w, bits=4, group=0, symmetric=False, clip=False)
    scale, zero = grid.columns(w.shape[1])
    codes = gptq.solve(w, gram, grid, damping=0.01, act_order=True).codes_OI
    assert torch.equal(codes[:, 4], quantize(w, scale, zero, grid.qmax)[:, 4].to(torch.uint8))


def test_damping_grows_when_it_must_and_is_recorded() -> None:
    w, _ = _problem()
    gram = -torch.eye(24, dtype=torch.float64) * 1e-4
    gram[0, 0] = 1.0
    grid = weight_grid(w, bits=4, group=0, symmetric=False, clip=False)
    solved = gptq.solve(w, gram, grid, damping=1e-6, act_order=False)
    assert solved.damping > 1e-6


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width", [1, 7, 8, 33, 128])
def test_packing_is_exact_and_dense(bits: int, width: int) -> None:
    codes = torch.randint(0, 2**bits, (5, width), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (5, bits * -(-width // 8)) == (5, packed_bytes(width, bits))
    assert torch.equal(unpack(packed, bits, width), codes)


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit 3 bits"):
        pack(torch.tensor([[8]], dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="do not hold"):
        unpack(torch.zeros(2, 3, dtype=torch.uint8), 3, 100)


@pytest.mark.parametrize(("width", "block"), [(128, 128), (640, 128), (96, 32), (24, 8), (7, 1)])
def test_rotation_is_its_own_inverse_and_folds_into_weights(width: int, block: int) -> None:
    assert transform.block_size(width, 128) == block
    h = transform.hadamard(block, dtype=torch.float64)
    x, w = torch.randn(9, width, dtype=torch.float64), torch.randn(4, width, dtype=torch.float64)
    rotated = transform.rotate(x, h)
    assert torch.allclose(transform.rotate(rotated, h), x)
    assert torch.allclose(rotated @ transform.rotate(w, h).T, x @ w.T)
    assert torch.allclose(transform.rotate_gram(x.T @ x, h), rotated.T @ rotated)


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_rotation_in_float32_is_the_exact_one_in_factors_or_not(block: int, tokens: int) -> None:
    x = torch.randn(2, tokens, 3 * block, generator=torch.Generator().manual_seed(0))[:, :, : 2 * block]
    before, h = x.clone(), transform.hadamard(block, dtype=torch.float32)
    exact = transform.rotate(x.double(), transform.hadamard(block, dtype=torch.float64))
    got = transform.rotate(x, h)
    assert got.shape == x.shape and torch.equal(x, before)
    assert torch.allclose(got.double(), exact, rtol=1e-6, atol=3e-6)
    wanted = x.clone().requires_grad_()
    transform.rotate(wanted, h).sum().backward()
    assert wanted.grad is not None and torch.allclose(wanted.grad, transform.rotate(torch.ones_like(x), h), atol=1e-5)


@pytest.mark.parametrize("fit", [True, False])
def test_rotation_in_bfloat16_is_the_exact_one_rounded(fit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transform, "_BF16_ON_CPU", fit)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    h = transform.hadamard(32, dtype=torch.bfloat16)
    exact = (x.double().unflatten(-1, (-1, 32)) @ h.double()).flatten(-2)
    got = transform.rotate(x, h)
    assert got.dtype == torch.bfloat16 and got.shape == x.shape
    assert torch.allclose(got.double(), exact, rtol=2**-8, atol=1e-3)
