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


@pytest.mark.parametrize("group", [0, 8])
def test_act_order_is_the_naive_solve_of_permuted_columns(group: int) -> None:
    W, H = _problem()
    grid = weight_grid(W, bits=3, group=group, symmetric=False, clip=True)
    perm = sorted(range(24), key=lambda i: -float(H[i, i]))
    scale, zero = grid.columns(24)
    permuted = Grid(bits=3, scale_OG=scale[:, perm], zero_OG=zero[:, perm])
    naive = _naive(W[:, perm], H[perm][:, perm], permuted, 0.3)
    codes = gptq.solve(W, H, grid, damping=0.3, act_order=True).codes_OI
    for place, column in enumerate(perm):
        assert torch.equal(codes[:, column], naive[:, place])
    assert codes.dtype == torch.uint8


def test_weights_outside_the_grid_are_clamped() -> None:
    W, H = _problem()
    grid = weight_grid(W / 3, bits=3, group=0, symmetric=False, clip=False)
    solution = gptq.solve(W, H, grid, damping=0.01, act_order=False)
    assert torch.equal(solution.codes_OI, _naive(W, H, grid, 0.01))
    assert int(solution.codes_OI.max()) == 7 and int(solution.codes_OI.min()) == 0


def test_the_weighted_error_is_that_of_outputs() -> None:
    random = torch.Generator().manual_seed(5)
    X, W, Q = (torch.randn(n, 8, generator=random, dtype=torch.float64) for n in (50, 6, 6))
    error = (X @ (W - Q).T).square().sum() / (X @ W.T).square().sum()
    assert gptq.weighted_error(W, Q, X.T @ X) == pytest.approx(float(error))


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    _, H = _problem()
    Hinv, damping = gptq.inverse_cholesky(H, 0.05)
    damped = H + 0.05 * float(H.diagonal().mean()) * torch.eye(24, dtype=torch.float64)
    assert damping == 0.05 and torch.equal(Hinv, Hinv.triu())
    assert torch.allclose(Hinv.T @ Hinv, torch.linalg.inv(damped))


def test_damping_grows_tenfold_until_the_matrix_is_positive_definite() -> None:
    H = -torch.eye(24, dtype=torch.float64) * 1e-4
    H[0, 0] = 1.0
    # The mean diagonal is .0416, so that 1e-4 takes a damping above 2.4e-3: the next of 1e-6, 1e-5, ... is 1e-2.
    assert gptq.inverse_cholesky(H, 1e-6)[1] == pytest.approx(1e-2)
    with pytest.raises(ValueError, match="stayed singular"):
        gptq.inverse_cholesky(-torch.eye(4, dtype=torch.float64), 0.01)


def test_dead_inputs_change_no_other_column() -> None:
    """Their diagonal becomes the mean and counts in the damping; nothing is fed to them or from them."""
    W, H = _problem(out=200)
    dead = list(range(1, 24, 2))
    alive = [i for i in range(24) if i not in dead]
    H[dead, :] = H[:, dead] = 0
    grid = weight_grid(W, bits=5, group=0, symmetric=False, clip=False)
    total = float(H.diagonal().sum())
    mean, live_mean = (total + 12 * total / 24) / 24, total / 12
    codes = gptq.solve(W, H, grid, damping=0.2, act_order=False).codes_OI
    without = _naive(W[:, alive], H[alive][:, alive], grid, 0.2 * mean / live_mean)
    assert torch.equal(codes[:, alive], without)
