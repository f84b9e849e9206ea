"""GPTQ against optimal brain quantization by explicit inverses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics import gptq
from adatsq_pipe.stages.numerics.grid import Grid, dequantize, quantize
from adatsq_pipe.stages.numerics.weight_grid import weight_grid


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


def _solved(W: Tensor, H: Tensor, grid: Grid, damping: float, act_order: bool) -> gptq.Solution:
    return gptq.solve(W, gptq.factor(H, damping=damping, act_order=act_order), grid)


def _squared_output(W: Tensor, H: Tensor) -> float:
    return sum(float(row @ H.double() @ row) for row in W.double())


def test_gptq_equals_the_naive_solve() -> None:
    w, gram = _problem()
    grid = weight_grid(w, bits=3, group=0, symmetric=False, clip=True)
    solved = _solved(w, gram, grid, 0.01, False)
    assert torch.equal(solved.codes_OI, _naive(w, gram, grid, 0.01))


@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_beats_rounding(group: int, act_order: bool) -> None:
    w, gram = _problem()
    grid = weight_grid(w, bits=3, group=group, symmetric=False, clip=True)
    scale, zero = grid.columns(w.shape[1])
    nearest = dequantize(quantize(w, scale, zero, grid.qmax), scale, zero)
    solved = _solved(w, gram, grid, 0.01, act_order)
    assert solved.squared_error < 0.9 * _squared_output(w - nearest, gram)
    off = w - dequantize(solved.codes_OI, scale, zero)
    assert solved.squared_error == pytest.approx(_squared_output(off, gram), rel=1e-5)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    w, gram = _problem()
    grid = weight_grid(w, bits=4, group=0, symmetric=False, clip=False)
    whole = _solved(w, gram, grid, 0.01, True)
    monkeypatch.setattr(gptq, "BLOCK", 5)
    assert torch.equal(_solved(w, gram, grid, 0.01, True).codes_OI, whole.codes_OI)


def test_inputs_that_are_always_zero_are_rounded_to_nearest() -> None:
    w, gram = _problem()
    gram[4, :] = gram[:, 4] = 0
    grid = weight_grid(w, bits=4, group=0, symmetric=False, clip=False)
    scale, zero = grid.columns(w.shape[1])
    codes = _solved(w, gram, grid, 0.01, True).codes_OI
    assert torch.equal(codes[:, 4], quantize(w, scale, zero, grid.qmax)[:, 4].to(torch.uint8))


def test_damping_grows_when_it_must_and_is_recorded() -> None:
    w, _ = _problem()
    gram = -torch.eye(24, dtype=torch.float64) * 1e-4
    gram[0, 0] = 1.0
    grid = weight_grid(w, bits=4, group=0, symmetric=False, clip=False)
    solved = _solved(w, gram, grid, 1e-6, False)
    assert solved.damping > 1e-6


@pytest.mark.parametrize("group", [0, 8])
def test_act_order_is_the_naive_solve_of_permuted_columns(group: int) -> None:
    W, H = _problem()
    grid = weight_grid(W, bits=3, group=group, symmetric=False, clip=True)
    perm = sorted(range(24), key=lambda i: -float(H[i, i]))
    scale, zero = grid.columns(24)
    permuted = Grid(bits=3, scale_OG=scale[:, perm], zero_OG=zero[:, perm])
    naive = _naive(W[:, perm], H[perm][:, perm], permuted, 0.3)
    codes = _solved(W, H, grid, 0.3, True).codes_OI
    for place, column in enumerate(perm):
        assert torch.equal(codes[:, column], naive[:, place])
    assert codes.dtype == torch.uint8


def test_weights_outside_the_grid_are_clamped() -> None:
    W, H = _problem()
    grid = weight_grid(W / 3, bits=3, group=0, symmetric=False, clip=False)
    solution = _solved(W, H, grid, 0.01, False)
    assert torch.equal(solution.codes_OI, _naive(W, H, grid, 0.01))
    assert int(solution.codes_OI.max()) == 7 and int(solution.codes_OI.min()) == 0


def test_the_weighted_error_is_that_of_outputs() -> None:
    random = torch.Generator().manual_seed(5)
    X, W, Q = (torch.randn(n, 8, generator=random, dtype=torch.float64) for n in (50, 6, 6))
    error = (X @ (W - Q).T).square().sum() / (X @ W.T).square().sum()
    assert gptq.weighted_error(W, Q, X.T @ X) == pytest.approx(float(error))


@pytest.mark.parametrize("damping", [0.01, 3.0])
def test_the_squared_error_counts_neither_damping_nor_dead_inputs(damping: float) -> None:
    W, H = _problem()
    H[[2, 7], :] = H[:, [2, 7]] = 0
    grid = weight_grid(W, bits=3, group=0, symmetric=False, clip=True)
    solved = _solved(W, H, grid, damping, True)
    off = W - dequantize(solved.codes_OI, grid.scale_OG, grid.zero_OG)
    assert solved.squared_error == pytest.approx(_squared_output(off, H), rel=1e-5)
    assert solved.damping == damping


def test_the_squared_error_is_exact_where_inputs_are_almost_of_one_direction() -> None:
    """W H W^T is then a million times the error, and a difference of outputs in float32 would drown it."""
    random = torch.Generator().manual_seed(4)
    X = 0.01 * torch.randn(64, 24, generator=random, dtype=torch.float64) + 100
    H, W = X.T @ X, torch.randn(6, 24, generator=random)
    grid = weight_grid(W, bits=8, group=0, symmetric=False, clip=False)
    solved = _solved(W, H, grid, 1e-9, False)
    off = W - dequantize(solved.codes_OI, grid.scale_OG, grid.zero_OG)
    assert solved.squared_error < 1e-6 * _squared_output(W, H)
    assert solved.squared_error == pytest.approx(_squared_output(off, H), rel=1e-2)


def test_the_squared_output_is_that_of_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "WIDE", 10)  # 24 columns in three parts
    monkeypatch.setattr(gptq, "BF16_ON_CPU", False)
    W, H = _problem()
    assert gptq.squared_output(W, H) == pytest.approx(_squared_output(W, H), rel=1e-5)


def test_the_squared_output_of_a_wide_weight_is_exact_to_a_thousandth() -> None:
    random = torch.Generator().manual_seed(6)
    X = torch.randn(400, 700, generator=random) + 2 * torch.randn(700, generator=random)
    W, H = torch.randn(30, 700, generator=random), (X.T @ X).double()
    assert gptq.squared_output(W, H) == pytest.approx(_squared_output(W, H), rel=1e-3)


@pytest.mark.parametrize("by_blocks", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_the_factor_is_that_of_the_damped_matrix(
    act_order: bool, by_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_blocks:
        monkeypatch.setattr(gptq, "VERY_WIDE", 24)
        monkeypatch.setattr(gptq, "FACTORED", 10)
        monkeypatch.setattr(gptq, "FACTORED_AT_ONCE", 4)
        monkeypatch.setattr(gptq, "TURNED", 50)
    _, H = _problem()
    made = gptq.factor(H, damping=0.05, act_order=act_order)
    damped = H + 0.05 * float(H.diagonal().mean()) * torch.eye(24, dtype=torch.float64)
    order = sorted(range(24), key=lambda i: -float(H[i, i])) if act_order else list(range(24))
    assert made.order_I.tolist() == order
    L = made.feedback_II.double()
    assert torch.equal(L, L.tril()) and torch.equal(L.diagonal(), torch.ones(24).double())
    torch.testing.assert_close(L.T @ torch.diag(made.D_I) @ L, damped[order][:, order], rtol=1e-5, atol=1e-3)
    assert made.damping == 0.05 and made.feedback_II.dtype == torch.float32


def test_a_wide_factor_is_in_float32_from_a_damping_of_a_hundredth_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "VERY_WIDE", 24)
    _, H = _problem()
    off = []
    for damping in (0.01, 0.0099):
        made = gptq.factor(H, damping=damping, act_order=False)
        damped = H + damping * float(H.diagonal().mean()) * torch.eye(24, dtype=torch.float64)
        first = torch.linalg.cholesky(damped.flip(0, 1)).diagonal().flip(0).square()
        off.append(float((made.D_I / first - 1).abs().max()))
    assert 1e-9 < off[0] < 1e-4 and off[1] < 1e-10


def test_what_float32_cannot_hold_is_factored_in_float64_without_more_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "VERY_WIDE", 24)
    W, H = _problem()
    grid = weight_grid(W, bits=4, group=0, symmetric=False, clip=False)
    large = _solved(W, H * 1e40, grid, 0.01, False)
    assert large.damping == 0.01
    assert torch.equal(large.codes_OI, _naive(W, H, grid, 0.01))


@pytest.mark.parametrize("by_blocks", [True, False])
def test_damping_grows_tenfold_until_the_matrix_is_positive_definite(
    by_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_blocks:
        monkeypatch.setattr(gptq, "VERY_WIDE", 4)
        monkeypatch.setattr(gptq, "FACTORED", 7)
    H = -torch.eye(24, dtype=torch.float64) * 1e-4
    H[0, 0] = 1.0
    # The mean diagonal is .0416, so that 1e-4 takes a damping above 2.4e-3: the next of 1e-6, 1e-5, ... is 1e-2.
    assert gptq.factor(H, damping=1e-6, act_order=False).damping == pytest.approx(1e-2)
    with pytest.raises(ValueError, match="stayed singular"):
        gptq.factor(-torch.eye(4, dtype=torch.float64), damping=0.01, act_order=False)


@pytest.mark.parametrize("native", [True, False])
def test_a_wide_layer_errs_no_more_and_says_what_it_errs(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes may differ from those of exact feedback, by luck for better or worse; its error is the one it states."""
    ratios = []
    for seed in range(8):
        random = torch.Generator().manual_seed(seed)
        X = torch.randn(900, 256, generator=random) + 2 * torch.randn(900, 1, generator=random)
        W, H = torch.randn(64, 256, generator=random), (X.T @ X).double()
        grid = weight_grid(W, bits=3, group=0, symmetric=False, clip=True)
        errors = []
        for narrowest in (512, 256):
            monkeypatch.setattr(gptq, "VERY_WIDE", narrowest)
            monkeypatch.setattr(gptq, "BF16_ON_CPU", native)
            solved = _solved(W, H, grid, 0.01, True)
            errors.append(_squared_output(W - dequantize(solved.codes_OI, grid.scale_OG, grid.zero_OG), H))
            assert solved.squared_error == pytest.approx(errors[-1], rel=1e-3)
        ratios.append(errors[1] / errors[0])
    assert not native or any(ratio != 1 for ratio in ratios)
    assert ratios == pytest.approx([1] * 8, abs=2e-2) and sum(ratios) / 8 == pytest.approx(1, abs=5e-3)


def test_dead_inputs_change_no_other_column() -> None:
    """Their diagonal becomes the mean and counts in the damping; nothing is fed to them or from them."""
    W, H = _problem(out=200)
    dead = list(range(1, 24, 2))
    alive = [i for i in range(24) if i not in dead]
    H[dead, :] = H[:, dead] = 0
    grid = weight_grid(W, bits=5, group=0, symmetric=False, clip=False)
    total = float(H.diagonal().sum())
    mean, live_mean = (total + 12 * total / 24) / 24, total / 12
    codes = _solved(W, H, grid, 0.2, False).codes_OI
    without = _naive(W[:, alive], H[alive][:, alive], grid, 0.2 * mean / live_mean)
    assert torch.equal(codes[:, alive], without)
