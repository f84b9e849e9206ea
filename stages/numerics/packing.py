"""Codes of b bits packed into bytes without gaps, laid out so that they unpack in whole slices.

The layout is ours. A row of codes is cut into eight equal segments (the last ones padded). The k-th codes of the eight
segments make a word of 8 b bits, code s at bit s b; byte i of all words together is plane i, and a row is its b planes
one after another. So every shift and mask below works on a contiguous slice, whatever b is.
"""

from __future__ import annotations

import torch
from torch import Tensor

SEGMENTS = 8


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of a packed row of `count` codes of `bits` bits."""
    return -(-count // SEGMENTS) * bits


def pack(codes_OI: Tensor, bits: int) -> Tensor:
    """`codes_OI` (uint8 [out, in], below 2^bits) packed: uint8 [out, bits * ceil(in / 8)]. `bits` lies in 1..8.

    Raises ValueError for a code of 2^bits or more.
    """
    if codes_OI.numel() and int(codes_OI.max()) >= 2**bits:
        raise ValueError(f"a code of {int(codes_OI.max())} does not fit {bits} bits")
    out, width = codes_OI.shape
    length = packed_bytes(width, 1)
    words = torch.nn.functional.pad(codes_OI, (0, SEGMENTS * length - width)).reshape(out, SEGMENTS, length)
    planes = torch.zeros(out, bits, length, dtype=torch.uint8, device=codes_OI.device)
    for segment in range(SEGMENTS):
        plane, shift = divmod(segment * bits, 8)
        planes[:, plane] |= words[:, segment] << shift
        if shift + bits > 8:
            planes[:, plane + 1] |= words[:, segment] >> (8 - shift)
    return planes.flatten(1)


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """The inverse of `pack`: codes uint8 [out, width] of `packed` uint8 [out, bits * ceil(width / 8)].

    Raises ValueError if the rows have another length.
    """
    length = packed_bytes(width, 1)
    if packed.shape[1] != bits * length:
        raise ValueError(f"rows of {packed.shape[1]} bytes do not hold {width} codes of {bits} bits ({bits * length})")
    planes, mask = packed.view(-1, bits, length), 2**bits - 1
    if 8 % bits == 0:
        parts = [planes >> shift if shift else planes for shift in range(0, 8, bits)]
        codes = torch.stack([*(part & mask for part in parts[:-1]), parts[-1]], 2).view(-1, SEGMENTS * length)
    else:
        segments = []
        for segment in range(SEGMENTS):
            plane, shift = divmod(segment * bits, 8)
            part = planes[:, plane] >> shift
            if shift + bits > 8:
                part = part | planes[:, plane + 1] << (8 - shift)
            segments.append(part & mask)
        codes = torch.cat(segments, 1)
    return codes if codes.shape[1] == width else codes[:, :width]
