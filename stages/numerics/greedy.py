"""A block rotation that is found greedily from a layer's inputs, and an order that evens out the blocks.

Source: DuQuant (2406.01721), its abstract and its authors' code. Every greedy step spreads the channel with the largest
magnitude over its block; the rotation after the step with the least peak is kept. The zigzag order deals the channels,
by falling peak, to the blocks and back.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PARTS = 1024
"""Parts of inputs, a block wide, that a greedy step looks at: those with the largest norms, which no rotation changes
and no peak exceeds."""


def dual_rotation(x_NI: Tensor, *, block: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """(rotations float32 [2, block, block], order int32 [in]): a greedy rotation of the inputs `x_NI`, the zigzag order
    of the channels that it gives, and a greedy rotation after that; `transform.rotate_twice` applies them."""
    first = greedy_rotation(x_NI, block=block, steps=steps, seed=seed)
    turned = _parts(x_NI, block) @ first
    order = zigzag_order(turned.view(x_NI.shape).abs().amax(0), block)
    second = greedy_rotation(turned.view(x_NI.shape)[:, order], block=block, steps=steps, seed=seed + 1)
    return torch.stack([first, second]), order.int()


def greedy_rotation(x_NI: Tensor, *, block: int, steps: int, seed: int) -> Tensor:
    """An orthogonal matrix, float32 [block, block], by which every block of the inputs `x_NI` (float [N, in]) has the
    least peak that one of `steps` greedy steps reaches; the identity where none lowers it.

    A step multiplies by one matrix whose first column is constant and whose other columns are random (by `seed`), with
    its first channel exchanged for the one that holds the largest magnitude.
    """
    parts = _parts(x_NI, block)
    if len(parts) > _PARTS:
        parts = parts[parts.square().sum(1).topk(_PARTS).indices]
    spread = _spreading(block, seed)
    whole = best = torch.eye(block, dtype=torch.float64)
    peaks = parts.abs().amax(0)
    least = peaks.max()
    for _ in range(steps):
        place = torch.arange(block)
        channel = int(peaks.argmax())
        place[0], place[channel] = channel, 0
        step = spread[place][:, place]
        whole, parts = whole @ step, parts @ step.to(parts)
        peaks = parts.abs().amax(0)
        if peaks.max() < least:
            least, best = peaks.max(), whole
    return best.float().to(x_NI.device)


def zigzag_order(peaks_I: Tensor, block: int) -> Tensor:
    """Channels in an order, int64 [in], whose blocks have nearly the same mean of `peaks_I` [in]: by falling peak the
    first goes to the first block, the next to the second, from the last block back to the first, and so on."""
    rounds = peaks_I.argsort(descending=True, stable=True).view(block, -1).clone()
    rounds[1::2] = rounds[1::2].flip(1)
    return rounds.T.flatten()


def _parts(x_NI: Tensor, block: int) -> Tensor:
    return x_NI.float().reshape(-1, block)


def _spreading(block: int, seed: int) -> Tensor:
    """An orthogonal matrix, float64 [block, block]: the reflection that exchanges the first axis and the diagonal, its
    columns but the first turned at random."""
    axis = torch.zeros(block, dtype=torch.float64)
    axis[0] = 1
    normal = axis - block**-0.5
    reflection: Tensor = torch.eye(block, dtype=torch.float64) - 2 * torch.outer(normal, normal) / normal.square().sum()
    draw = torch.randn(block - 1, block - 1, generator=torch.Generator().manual_seed(seed % 2**63), dtype=torch.float64)
    reflection[:, 1:] = reflection[:, 1:] @ torch.linalg.qr(draw).Q
    return reflection
