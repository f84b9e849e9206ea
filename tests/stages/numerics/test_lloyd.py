"""Lloyd-Max codebooks against published distortions."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from adatsq_pipe.stages.numerics import lloyd


@pytest.mark.parametrize(("bits", "published"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499)])
def test_the_codebook_has_the_published_distortion(bits: int, published: float) -> None:
    book = lloyd.gaussian_codebook(bits)
    x = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    density = torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
    error = ((x - book[lloyd.nearest_index(x, book)]).square() * density).sum() * (x[1] - x[0])
    assert error.item() == pytest.approx(published, rel=3e-3)
    assert torch.equal(book, -book.flip(0)) and (book.diff() > 0).all()


@pytest.mark.parametrize(
    ("bits", "published"),
    [(1, [0.7980]), (2, [0.4528, 1.510]), (3, [0.2451, 0.7560, 1.344, 2.152])],
)
def test_the_codebook_has_the_levels_of_max_1960(bits: int, published: list[float]) -> None:
    levels = lloyd.gaussian_codebook(bits)
    assert levels.dtype == torch.float64 and len(levels) == 2**bits
    assert levels[2 ** (bits - 1) :].tolist() == pytest.approx(published, rel=1e-3)


def test_every_level_is_the_mean_of_its_cell() -> None:
    levels = lloyd.gaussian_codebook(4).tolist()
    edges = [-12.0, *((a + b) / 2 for a, b in pairwise(levels)), 12.0]
    for level, (low, high) in zip(levels, pairwise(edges), strict=True):
        x = torch.linspace(low, high, 100_001, dtype=torch.float64)
        density = torch.exp(-x * x / 2)
        assert float((x * density).sum() / density.sum()) == pytest.approx(level, abs=2e-4)


def test_the_nearest_level_is_that_of_all_distances() -> None:
    levels = torch.tensor([-2.0, -0.5, 0.1, 3.0])
    x = torch.linspace(-4, 4, 97).view(1, 97)
    assert torch.equal(lloyd.nearest_index(x, levels), (x.unsqueeze(-1) - levels).abs().argmin(-1))
