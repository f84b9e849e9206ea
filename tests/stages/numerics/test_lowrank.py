"""The low-rank branch against the theorem of Eckart and Young, and its alternation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics import lowrank
from adatsq_pipe.stages.numerics.gptq import weighted_error
from adatsq_pipe.stages.numerics.grid import dequantize, quantize
from adatsq_pipe.stages.numerics.weight_grid import weight_grid


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


def test_the_factors_share_the_singular_values_evenly() -> None:
    _, w, _ = _problem()
    up, down = lowrank.truncated_svd(w, 3, dtype=torch.float64)
    s = torch.linalg.svdvals(w.double())[:3]
    assert up.shape == (24, 3) and down.shape == (3, 32)
    assert torch.allclose(up.T @ up, torch.diag(s)) and torch.allclose(down @ down.T, torch.diag(s))


@pytest.mark.parametrize("rounds", [0, 1, 2, 30])
def test_the_alternation_is_that_of_an_obvious_loop(rounds: int) -> None:
    _, w, gram = _problem()
    residual, errors, branches = torch.zeros_like(w).double(), list[float](), []
    for _ in range(max(1, rounds)):
        u, s, v = torch.linalg.svd(w.double() - residual, full_matrices=False)
        up, down = (u[:, :4] * s[:4].sqrt()).bfloat16(), (s[:4].sqrt().unsqueeze(1) * v[:4]).bfloat16()
        low = up.double() @ down.double()
        residual = _rounded((w.double() - low).float()).double()
        branches.append((up, down))
        errors.append(weighted_error(w.double(), low + residual, gram))
        if len(errors) > 1 and errors[-1] >= min(errors[:-1]):
            break
    branch = lowrank.alternate(w, gram, _rounded, rank=4, rounds=rounds)
    assert branch.errors == pytest.approx(errors)
    up, down = branches[errors.index(min(errors))]
    assert torch.equal(branch.up_OR, up) and torch.equal(branch.down_RI, down)
    assert branch.up_OR.dtype == torch.bfloat16
