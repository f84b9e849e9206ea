"""Gram matrices in blocks against the sum of float32 products of whole matrices, and against a sum in float64."""

from __future__ import annotations

import pytest
import torch

from adatsq_pipe.stages.numerics import gram
from tests.support import slow_math


@pytest.mark.parametrize(
    ("width", "block", "converted"), [(7, 64, 2**30), (192, 64, 2**30), (192, 64, 0), (320, 128, 0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_give_the_sum_of_whole_products(
    monkeypatch: pytest.MonkeyPatch, width: int, block: int, converted: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(gram, "BLOCK", block * width * 8)
    monkeypatch.setattr(gram, "CONVERTED", converted)
    random = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, width, generator=random).to(dtype) for n in (5, 48, 96)]
    parts = [[rows[0]], [rows[1][:16], rows[1][16:17], rows[1][17:]], list(rows[2].split(32))]
    weights = {"a": torch.tensor([0.5, 0.2, 0.3]), "b": torch.tensor([0.0, 1.0, 2.0])}
    found = gram.weighted(parts, weights, device="cpu")
    for name, of_step in weights.items():
        whole, exact = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
        for x, weight in zip(rows, of_step.tolist(), strict=True):
            whole += (x.float().T @ x.float()).double() * (weight / len(x))
            exact += x.double().T @ x.double() * (weight / len(x))
        got = slow_math.from_half(found[name])
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, whole.float(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-5)


def test_a_block_is_a_multiple_of_64_rows_that_fits_or_the_whole_of_an_odd_width() -> None:
    for width in (64, 1152, 4608, 15360, 10**6):
        size = gram._block(width)
        assert size % 64 == 0 and (size == 64 or size * width * 8 <= gram.BLOCK)
    assert gram._block(1000) == 1000


def test_the_bytes_do_not_depend_on_where_a_mapped_input_begins() -> None:
    room, width = torch.randn(48 * 64 + 16, generator=torch.Generator().manual_seed(0)), 64
    weights = {"a": torch.ones(1)}
    wanted = gram.weighted([[room[: 48 * width].view(48, width).clone()]], weights, device="cpu")["a"]
    room[1 : 1 + 48 * width] = room[: 48 * width].clone()
    shifted = room[1 : 1 + 48 * width].view(48, width)
    assert shifted.data_ptr() % 64, "it begins beside a cache line"
    assert torch.equal(gram.weighted([[shifted]], weights, device="cpu")["a"], wanted)
