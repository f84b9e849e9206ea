"""Half of a symmetric matrix: its rows from the diagonal on, in strips of 64 rows that lie one after the other.

A strip begins at the first column that its rows share with the diagonal, so that the squares on the diagonal are whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

STRIP = 64
"""Rows of a strip."""


def half_size(width: int) -> int:
    """Numbers in the half of a matrix [width, width]: n (n + 1) / 2 squares, if n strips fill it."""
    return sum(rows * (width - first) for first, rows in _places(width))


def strips(half: Tensor, width: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, the strip [rows, width - first row]) of `half` [half_size(width)], as parts of it."""
    place = 0
    for first, rows in _places(width):
        size = rows * (width - first)
        yield first, half[place : place + size].view(rows, width - first)
        place += size


def whole(half: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The matrix [width, width] of a half, on its device."""
    found = torch.empty(width, width, dtype=dtype, device=half.device)
    for first, strip in strips(half, width):
        after = first + len(strip)
        found[first:after, first:] = strip
        found[after:, first:after] = strip[:, len(strip) :].T
    return found


def _places(width: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of every strip."""
    for first in range(0, width, STRIP):
        yield first, min(STRIP, width - first)
