"""Codes of b bits as a stream of bytes with no bit between them, least significant bit first."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack(codes_OI: Tensor, bits: int) -> Tensor:
    """uint8 codes `[out, in]` below 2^bits -> uint8 `[out, ceil(in * bits / 8)]`; every row starts on a byte."""
    if codes_OI.numel() and int(codes_OI.max()) >= 2**bits:
        raise ValueError(f"a code of {int(codes_OI.max())} does not fit {bits} bits")
    out, width = codes_OI.shape
    shifts = torch.arange(bits, dtype=torch.uint8)
    stream = ((codes_OI.unsqueeze(-1) >> shifts) & 1).reshape(out, width * bits)
    padding = packed_bytes(width, bits) * 8 - width * bits
    stream = torch.nn.functional.pad(stream, (0, padding)).reshape(out, -1, 8)
    packed: Tensor = (stream << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    return packed


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """Inverse of `pack`: uint8 `[out, width]`."""
    bytes_per_row = packed_bytes(width, bits)
    if packed.shape[1] != bytes_per_row:
        raise ValueError(f"rows of {packed.shape[1]} bytes do not hold {width} codes of {bits} bits ({bytes_per_row})")
    eight = torch.arange(8, dtype=torch.uint8, device=packed.device)
    stream = ((packed.unsqueeze(-1) >> eight) & 1).flatten(1)[:, : width * bits].unflatten(1, (width, bits))
    codes: Tensor = (stream << torch.arange(bits, dtype=torch.uint8, device=packed.device)).sum(-1, dtype=torch.uint8)
    return codes
