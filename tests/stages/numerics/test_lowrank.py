"""The low-rank branch against the theorem of Eckart and Young, and its alternation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics import lowrank
from adatsq_pipe.stages.numerics.gptq import weighted_error
from adatsq_pipe.stages.numerics.grid import dequantize, quantize, weight_grid


def _problem(seed: int = 3, width: int = 32, out: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(200, width, generator=random, dtype=torch.float64)
    x[:, 3] *= 40
    return x, torch.randn(out, width, generator=random), x.T @ x


def _rounded(w: Tensor) -> Tensor:
    grid = weight_grid(w, bits=3, group=8, symmetric=False, clip=False)
    scale, zero = grid.columns(w.shape[1])
    return dequantize(quantize(w, scale, zero, grid.qmax), scale, zero)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_the_alternation_never_ends_worse_than_it_began(rank: int) -> None:
    _, w, gram = _problem()
    branch = lowrank.alternate(w, gram, _rounded, rank=rank, rounds=30)
    assert branch.error == min(branch.errors) and branch.error <= branch.errors[0]
    assert branch.error < weighted_error(w, _rounded(w), gram)
    low = branch.up_OR.double() @ branch.down_RI.double()
    got = low + _rounded((w.double() - low).float()).double()
    assert weighted_error(w, got, gram) == pytest.approx(branch.error)


def test_the_branch_is_the_best_of_its_rank() -> None:
    _, w, _ = _problem()
    up, down = lowrank.truncated_svd(w, 5, dtype=torch.float64)
    left = torch.linalg.svdvals(w.double() - up @ down)
    assert torch.allclose(left[: 24 - 5], torch.linalg.svdvals(w.double())[5:])
