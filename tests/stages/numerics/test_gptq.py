"""GPTQ against optimal brain quantization by explicit inverses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics import gptq
from adatsq_pipe.stages.numerics.grid import Grid, dequantize, quantize, weight_grid


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
