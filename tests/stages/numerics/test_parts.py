"""Smoothing and the low-rank branch: what each must never do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics import lloyd, lowrank, smoothing, weight
from adatsq_pipe.stages.numerics.gptq import weighted_error
from adatsq_pipe.stages.numerics.grid import dequantize, quantize, weight_grid


def _problem(seed: int = 3, width: int = 32, out: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(200, width, generator=random, dtype=torch.float64)
    x[:, 3] *= 40
    return x, torch.randn(out, width, generator=random), x.T @ x


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_smoothing_leaves_the_output_as_it_was(alpha: float) -> None:
    x, w, _ = _problem()
    s = smoothing.smoothquant(x.abs().amax(0), w, alpha=alpha)
    assert torch.allclose((x / s) @ (w.double() * s).T, x @ w.double().T, rtol=1e-9, atol=1e-9)


def test_smoothing_by_half_makes_both_sides_equal() -> None:
    x, w, _ = _problem()
    s = smoothing.smoothquant(x.abs().amax(0), w, alpha=0.5)
    assert torch.allclose((x / s).abs().amax(0), (w.double() * s).abs().amax(0))


def test_smoothing_leaves_dead_channels_alone() -> None:
    x, w, _ = _problem()
    x[:, 1], w[:, 2] = 0, 0
    s = smoothing.smoothquant(x.abs().amax(0), w, alpha=0.5)
    assert s[1] == 1 and s[2] == 1 and s.isfinite().all()


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


@pytest.mark.parametrize(("bits", "published"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499)])
def test_the_codebook_has_the_published_distortion(bits: int, published: float) -> None:
    book = lloyd.gaussian_codebook(bits)
    x = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    density = torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
    error = ((x - book[lloyd.nearest_index(x, book)]).square() * density).sum() * (x[1] - x[0])
    assert error.item() == pytest.approx(published, rel=3e-3)
    assert torch.equal(book, -book.flip(0)) and (book.diff() > 0).all()


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
