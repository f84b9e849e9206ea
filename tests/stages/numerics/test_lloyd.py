"""Lloyd-Max codebooks against published distortions."""

from __future__ import annotations

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
