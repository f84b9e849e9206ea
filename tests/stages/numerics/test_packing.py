"""Packed codes: dense, exact, in the layout that is documented."""

from __future__ import annotations

import pytest
import torch

from adatsq_pipe.stages.numerics.packing import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width", [1, 7, 8, 33, 128])
def test_packing_is_exact_and_dense(bits: int, width: int) -> None:
    codes = torch.randint(0, 2**bits, (5, width), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (5, bits * -(-width // 8)) == (5, packed_bytes(width, bits))
    assert torch.equal(unpack(packed, bits, width), codes)


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit 3 bits"):
        pack(torch.tensor([[8]], dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="do not hold"):
        unpack(torch.zeros(2, 3, dtype=torch.uint8), 3, 100)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_layout_is_the_documented_one(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (2, 19), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    packed = pack(codes, bits).view(2, bits, 3)
    for row, planes in zip(codes.tolist(), packed.tolist(), strict=True):
        padded = row + [0] * 5
        for k in range(3):
            word = sum(padded[segment * 3 + k] << (segment * bits) for segment in range(8))
            assert [plane[k] for plane in planes] == list(word.to_bytes(bits, "little"))
