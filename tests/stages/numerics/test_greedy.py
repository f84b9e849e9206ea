"""DuQuant's rotations and order against slow versions of the same rules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.greedy import dual_rotation, greedy_rotation, zigzag_order
from adatsq_pipe.stages.numerics.transform import rotate_back, rotate_twice


def _inputs(seed: int = 0) -> Tensor:
    """Thirty rows of four blocks of eight, one channel with massive outliers and two with normal ones."""
    x = torch.randn(30, 32, generator=torch.Generator().manual_seed(seed))
    x[:, 5] *= 4
    x[:, 21] *= 6
    x[3, 13] = 200.0
    return x


def _blocked(x: Tensor, matrix: Tensor) -> Tensor:
    size = len(matrix)
    return torch.cat([x[:, i : i + size].double() @ matrix.double() for i in range(0, x.shape[1], size)], 1)


def test_a_greedy_rotation_is_orthogonal_and_lowers_the_largest_outlier_at_every_length() -> None:
    x, peaks = _inputs(), [200.0]
    for steps in (1, 4, 64):
        turn = greedy_rotation(x, block=8, steps=steps, seed=3)
        assert torch.allclose(turn.double() @ turn.double().T, torch.eye(8, dtype=torch.float64), atol=1e-6)
        peaks.append(float(_blocked(x, turn).abs().max()))
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] < peaks[1] < 0.9 * peaks[0]
    least = math.sqrt(float(x.view(-1, 8).square().sum(1).max()) / 8)
    assert least <= peaks[-1] < 1.5 * least, "no rotation goes below an even share of a part's norm"


def test_a_step_leaves_the_outlier_s_channel_with_an_even_share() -> None:
    """One step on a block with one value: it and the block's first channel get 1 / sqrt(B) of it."""
    x = torch.zeros(2, 16)
    x[1, 14] = 8.0
    turn = greedy_rotation(x, block=16, steps=1, seed=0)
    row = (x @ turn)[1]
    assert abs(float(row[14])) == pytest.approx(2.0, rel=1e-5) and float(row.norm()) == pytest.approx(8.0, rel=1e-5)
    assert float(row.abs().max()) < 8.0
    assert torch.allclose(turn[:, 14].abs(), torch.full((16,), 0.25), atol=1e-6), "a constant column"


def test_without_an_outlier_nothing_is_turned() -> None:
    flat = torch.ones(4, 16) * torch.tensor([1.0, -1.0]).repeat(8)
    flat[:, :] *= torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert torch.equal(greedy_rotation(flat, block=1, steps=5, seed=0), torch.ones(1, 1))
    turn = greedy_rotation(flat, block=16, steps=50, seed=0)
    assert float((flat @ turn).abs().max()) <= 1.0


def _dealt(peaks: list[float], blocks: int) -> list[int]:
    """Channels dealt one by one, to the last block and back again."""
    hands: list[list[int]] = [[] for _ in range(blocks)]
    at, step = 0, 1
    for channel in sorted(range(len(peaks)), key=lambda i: -peaks[i]):
        hands[at].append(channel)
        if not 0 <= at + step < blocks:
            step = -step
        else:
            at += step
    return [channel for hand in hands for channel in hand]


@pytest.mark.parametrize(("width", "block"), [(32, 8), (24, 8), (16, 16), (12, 2), (20, 4)])
def test_the_zigzag_order_deals_channels_and_evens_the_blocks_means(width: int, block: int) -> None:
    peaks = torch.rand(width, generator=torch.Generator().manual_seed(width)).pow(4) * 50
    order = zigzag_order(peaks, block)
    assert order.tolist() == _dealt(peaks.tolist(), width // block)
    assert sorted(order.tolist()) == list(range(width))
    means = [float(part.mean()) for part in peaks[order].split(block)]
    assert max(means) - min(means) <= float(peaks.max() - peaks.min()) / block + 1e-6
    sizes = [float(part.mean()) for part in peaks.sort().values.split(block)]
    if width > block:
        assert max(means) - min(means) < 0.5 * (max(sizes) - min(sizes))


def test_both_rotations_and_the_order_leave_the_product_and_have_lower_peaks_than_the_first() -> None:
    x, w = _inputs(), torch.randn(5, 32, generator=torch.Generator().manual_seed(9))
    rotations, order = dual_rotation(x, block=8, steps=64, seed=1)
    assert rotations.dtype == torch.float32 and order.dtype == torch.int32
    once = _blocked(x, rotations[0])
    by_hand = _blocked(once[:, order.long()], rotations[1])
    turned = rotate_twice(x, rotations, order)
    assert torch.allclose(turned.double(), by_hand, rtol=1e-5, atol=1e-4)
    assert order.tolist() == _dealt(once.abs().amax(0).tolist(), 4)
    product = (
        rotate_twice(x.double(), rotations.double(), order) @ rotate_twice(w.double(), rotations.double(), order).T
    )
    assert torch.allclose(product, x.double() @ w.double().T, rtol=1e-5, atol=1e-3)
    assert torch.allclose(rotate_back(turned, rotations, order), x, rtol=1e-4, atol=1e-3)
    assert float(by_hand.abs().max()) < float(once.abs().max()) < 200
    again = dual_rotation(x, block=8, steps=64, seed=1)
    assert torch.equal(again[0], rotations) and torch.equal(again[1], order)
    other = dual_rotation(x, block=8, steps=64, seed=2)[0]
    assert not torch.allclose(other, rotations)


def test_of_many_parts_those_with_the_largest_norms_decide() -> None:
    x = torch.randn(3000, 8, generator=torch.Generator().manual_seed(4)) * 0.01
    large = _inputs()[:, 8:16]
    x[::100] = large
    rest = x[torch.arange(3000) % 100 != 0]
    assert float(rest.norm(dim=1).max()) < float(large.norm(dim=1).min())
    alone = greedy_rotation(large, block=8, steps=16, seed=0)
    assert torch.allclose(greedy_rotation(x, block=8, steps=16, seed=0), alone, atol=1e-5)
