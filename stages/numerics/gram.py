"""Weighted Gram matrices of a layer's inputs.

A matrix of real size does not fit in a processor's cache, and adding whole matrices step after step takes longer than
their products. So it is made in blocks of rows that fit, each over all steps. Of a block only the part from the
diagonal on is multiplied: the rest mirrors other blocks. An element is the same sum in the same order as of whole
products. Only half of the matrix is kept (see `symmetric`): to write and hash a whole one takes longer than to multiply
few rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.symmetric import STRIP, half_size, strips

BLOCK = 8 * 2**20
"""Bytes of the float64 sums of a block of rows."""
CONVERTED = 2**30
"""Bytes of inputs up to which they are converted to float32 once, not once a block."""
_LINE = 64
"""Bytes of a cache line."""


def weighted(rows: Sequence[Sequence[Tensor]], weights: Mapping[str, Tensor], *, device: str) -> dict[str, Tensor]:
    """sum_t w[t] X_t^T X_t / len(X_t) for each of the `weights` ([steps]), by name: its half (see `symmetric`), float32
    on the CPU.

    `rows` are the parts of X_t of every step, [rows, in] each, in any floating dtype, mapped from files or not.
    Products are float32 and sums float64, in order of steps. Inputs of more than CONVERTED bytes are converted a step
    at a time.
    """
    width, counts = rows[0][0].shape[1], [sum(map(len, parts)) for parts in rows]
    size = _block(width) if device == "cpu" else width
    scales = {name: [w.item() / n for w, n in zip(of_step, counts, strict=True)] for name, of_step in weights.items()}
    held = list(_converted(rows, device)) if sum(counts) * width * 4 <= CONVERTED else None
    found = {name: torch.empty(half_size(width), device=device) for name in weights}
    places = {name: dict(strips(half, width)) for name, half in found.items()}
    for start in range(0, width, size):
        shape = (min(size, width - start), width - start)
        product = torch.empty(shape, device=device)
        sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name in weights}
        for step, x in enumerate(held if held is not None else _converted(rows, device)):
            torch.mm(x[:, start : start + size].T, x[:, start:], out=product)
            for name, total in sums.items():
                total.add_(product, alpha=scales[name][step])
        for name, total in sums.items():
            for at in range(0, len(total), STRIP):
                places[name][start + at].copy_(total[at : at + STRIP, at:])
    return {name: half.cpu() for name, half in found.items()}


def _block(width: int) -> int:
    """Rows of a block: whole strips, for widths that are of whole strips too; else all, since only whole kernels of 64
    columns add in one order wherever they stand."""
    return width if width % STRIP else max(STRIP, BLOCK // (8 * width) // STRIP * STRIP)


def _converted(rows: Sequence[Sequence[Tensor]], device: str) -> Iterator[Tensor]:
    """X_t of one step after the other, float32 on the device.

    On a CPU the order of a product's sums depends on the alignment, and what is mapped from a file may begin anywhere.
    """
    for parts in rows:
        found = [part.to(device).float() for part in parts]
        yield found[0] if len(found) == 1 and found[0].data_ptr() % _LINE == 0 else torch.cat(found)
