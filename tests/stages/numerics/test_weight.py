"""Quantized weights: what is stored has the error that is reported."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics import gptq, lowrank, weight
from adatsq_pipe.stages.numerics.grid import Grid
from adatsq_pipe.stages.numerics.weight_grid import weight_grid
from tests.support import slow_math


def test_a_gaussian_weight_is_better_off_on_the_codebook() -> None:
    w = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
    gram = torch.eye(512, dtype=torch.float64)
    booked = weight.on_codebook(w, gram, bits=3)
    plain = weight.on_grid(w, gram, lambda w: weight_grid(w, bits=3, group=0, symmetric=False, clip=True))
    assert booked.error == pytest.approx(0.0345, rel=0.1) and booked.error < plain.error


def test_a_row_of_zeros_stays_one() -> None:
    w = torch.zeros(2, 16)
    w[1] = torch.randn(16, generator=torch.Generator().manual_seed(0))
    coded = weight.on_codebook(w, torch.eye(16, dtype=torch.float64), bits=4)
    values = coded.tensors["book"][coded.tensors["codes"].long()] * coded.tensors["scale"].float()
    assert values[0].abs().max() == 0
    assert set(coded.tensors["codes"][0].tolist()) <= {7, 8}, "the levels next to zero"


def _problem() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(200, 32, generator=random, dtype=torch.float64) @ torch.randn(32, 32, generator=random).double()
    return torch.randn(24, 32, generator=random), x.T @ x


def _grid_of(w: Tensor) -> Grid:
    grid = weight_grid(w, bits=3, group=8, symmetric=False, clip=False)
    return replace(grid, scale_OG=grid.scale_OG.bfloat16().float())


def _gptq(w: Tensor, grid: Grid) -> gptq.Solution:
    return gptq.solve(w, gptq.factor(_problem()[1], damping=0.05, act_order=True), grid)


def _values(tensors: dict[str, Tensor]) -> Tensor:
    """The weight that stored tensors stand for, entry by entry."""
    codes, scale, zero = (tensors[name].double() for name in ("codes", "scale", "zero"))
    values = torch.empty_like(codes)
    for o in range(24):
        for i in range(32):
            values[o, i] = (codes[o, i] - zero[o, i // 8]) * scale[o, i // 8]
    return values + tensors["up"].double() @ tensors["down"].double() if "up" in tensors else values


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("solver", [None, _gptq])
def test_the_stored_tensors_have_the_error_that_is_reported(rank: int, solver: weight.Solver | None) -> None:
    w, gram = _problem()
    quantized = weight.on_grid(w, gram, _grid_of, rank=rank, rounds=3, solver=solver)
    assert slow_math.error(w, _values(quantized.tensors), gram) == pytest.approx(quantized.error, rel=1e-4)
    nearest = weight.on_grid(w, gram, _grid_of, rank=rank, rounds=3)
    assert (quantized.error < 0.9 * nearest.error) == (solver is not None)
    assert quantized.damping == (0.05 if solver else 0)
    dtypes = [quantized.tensors[name].dtype for name in ("codes", "scale", "zero")]
    assert dtypes == [torch.uint8, torch.bfloat16, torch.uint8]


def test_rounding_to_nearest_is_that_of_each_entry() -> None:
    w, gram = _problem()
    tensors = weight.on_grid(w, gram, _grid_of).tensors
    scale, zero = tensors["scale"].float(), tensors["zero"].float()
    for o in range(24):
        for i in range(32):
            s, z = float(scale[o, i // 8]), int(zero[o, i // 8])
            levels = [(code - z) * s for code in range(8)]
            distances = [abs(level - float(w[o, i])) for level in levels]
            assert distances[int(tensors["codes"][o, i])] == pytest.approx(min(distances), abs=1e-6)


def test_the_solver_gets_what_the_branch_leaves_and_the_branch_its_rounds() -> None:
    w, gram = _problem()
    inputs = list[Tensor]()

    def solver(residual: Tensor, grid: Grid) -> gptq.Solution:
        inputs.append(residual)
        return _gptq(residual, grid)

    quantized = weight.on_grid(w, gram, _grid_of, rank=4, rounds=6, solver=solver)
    low = quantized.tensors["up"].double() @ quantized.tensors["down"].double()
    assert torch.allclose(inputs[0], (w.double() - low).float(), atol=1e-6)
    branch = lowrank.alternate(w, gram, lambda r: _to_grid(r, _grid_of(r)), rank=4, rounds=6)
    assert len(branch.errors) > 1 and branch.error < branch.errors[0]
    assert torch.equal(branch.up_OR, quantized.tensors["up"])
    nearest = weight.on_grid(w, gram, _grid_of, rank=4, rounds=6)
    assert nearest.error == pytest.approx(branch.error, rel=1e-4)


def _to_grid(w: Tensor, grid: Grid) -> Tensor:
    scale, zero = grid.columns(32)
    return ((w / scale).round() + zero).clamp(0, 7).sub(zero) * scale


def test_a_row_on_the_codebook_is_divided_by_its_root_mean_square() -> None:
    w, gram = _problem()
    w *= torch.logspace(-2, 2, 24).unsqueeze(1)
    quantized = weight.on_codebook(w, gram, bits=4)
    book, codes, scale = (quantized.tensors[name] for name in ("book", "codes", "scale"))
    assert torch.equal(scale, w.square().mean(1, keepdim=True).sqrt().bfloat16())
    assert torch.equal(codes.long(), ((w / scale.float()).unsqueeze(-1) - book).abs().argmin(-1))
    values = book.double()[codes.long()] * scale.double()
    assert quantized.error == pytest.approx(slow_math.error(w, values, gram), rel=1e-5)
