"""Half of a symmetric matrix: its layout number by number, and back."""

from __future__ import annotations

import pytest
import torch

from adatsq_pipe.stages.numerics import symmetric
from tests.support import slow_math

WIDTHS = (1, 63, 64, 65, 128, 200)


def _matrix(width: int) -> torch.Tensor:
    x = torch.randn(width, width, generator=torch.Generator().manual_seed(width))
    return x + x.T


@pytest.mark.parametrize("width", WIDTHS)
def test_a_matrix_comes_back_from_its_half(width: int) -> None:
    matrix = _matrix(width)
    half = slow_math.half(matrix)
    assert symmetric.half_size(width) == len(half)
    assert torch.equal(symmetric.whole(half, width, torch.float32), matrix)
    wide = symmetric.whole(half, width, torch.float64)
    assert wide.dtype == torch.float64 and torch.equal(wide, matrix.double())
    assert torch.equal(slow_math.from_half(half), matrix)


def test_strips_are_parts_of_the_half_that_can_be_filled() -> None:
    matrix, half = _matrix(130), torch.zeros(symmetric.half_size(130))
    places = []
    for first, strip in symmetric.strips(half, 130):
        strip.copy_(matrix[first : first + len(strip), first:])
        places.append((first, *strip.shape))
    assert places == [(0, 64, 130), (64, 64, 66), (128, 2, 2)]
    assert torch.equal(half, slow_math.half(matrix))


def test_a_half_is_little_more_than_half() -> None:
    """72 strips at DiT-XL/2's widest."""
    assert symmetric.half_size(4608) == 64 * 64 * 72 * 73 // 2
