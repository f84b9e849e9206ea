"""Triton kernel for packed execution on a GPU: codes of weights times int8 codes of activations, summed in int32.

Whole numbers of up to eight bits are exact in int8, so one kernel serves every activation bit-width of a policy. It
runs wherever Triton does; without a GPU only in Triton's interpreter (TRITON_INTERPRET=1), which is how it is tested
where there is none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatsq_pipe.stages.numerics.packing import packed_bytes

_TOKENS, _OUTS, _DEPTH = 64, 64, 64


@triton.jit  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    a, offset, times, planes, scale, zero, out,
    tokens, outs, width, length,
    BITS: tl.constexpr, TOKENS: tl.constexpr, OUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """`out[n, o] = times[n] scale[o] sum_k (a[n, k] + offset[n]) (code[o, k] - zero[o])`, k in eight segments."""
    n = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    o = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    there_n, there_o = n < tokens, o < outs
    total = tl.zeros((TOKENS, OUTS), tl.int32)
    sum_a = tl.zeros((TOKENS,), tl.int32)
    sum_w = tl.zeros((OUTS,), tl.int32)
    for segment in tl.static_range(8):
        PLANE: tl.constexpr = segment * BITS // 8
        SHIFT: tl.constexpr = segment * BITS % 8
        for start in range(0, length, DEPTH):
            j = start + tl.arange(0, DEPTH)
            k = segment * length + j
            inside = (j < length) & (k < width)
            x = tl.load(a + n[:, None] * width + k[None, :], mask=there_n[:, None] & inside[None, :], other=0)
            place = planes + o[:, None] * (BITS * length) + PLANE * length + j[None, :]
            w = tl.load(place, mask=there_o[:, None] & inside[None, :], other=0).to(tl.int32) >> SHIFT
            if SHIFT + BITS > 8:
                above = tl.load(place + length, mask=there_o[:, None] & inside[None, :], other=0).to(tl.int32)
                w = w | (above << (8 - SHIFT))
            w = w & ((1 << BITS) - 1)
            if BITS == 8:
                w = w - 128
            w = tl.where(inside[None, :], w, 0)
            total += tl.dot(x, tl.trans(w.to(tl.int8)), out_dtype=tl.int32)
            sum_a += tl.sum(x.to(tl.int32), 1)
            sum_w += tl.sum(w, 1)
    centre = (128 if BITS == 8 else 0) - tl.load(zero + o, mask=there_o, other=0).to(tl.int32)
    shift = tl.load(offset + n, mask=there_n, other=0)
    total += centre[None, :] * sum_a[:, None] + shift[:, None] * (sum_w + centre * width)[None, :]
    of_n = tl.load(times + n, mask=there_n, other=0.0)
    of_o = tl.load(scale + o, mask=there_o, other=0.0).to(tl.float32)
    found = total.to(tl.float32) * of_n[:, None] * of_o[None, :]
    tl.store(out + n[:, None] * outs + o[None, :], found, mask=there_n[:, None] & there_o[None, :])


def packed_product(
    codes_NI: Tensor, times_N1: Tensor, planes: Tensor, scale_O1: Tensor, zero_O1: Tensor, *, bits: int
) -> Tensor:
    """Rounded activations times packed weights, `[..., out]` in the dtype of `codes_NI`.

    `codes_NI` [..., in] are whole numbers spanning at most 256 values a token, `times_N1` float32 what multiplies
    them; `planes` uint8 as `packing.pack` made them, with a scale and a zero point per output channel.
    """
    width, outs = codes_NI.shape[-1], len(planes)
    codes = codes_NI.reshape(-1, width)
    middle = ((codes.amax(-1, keepdim=True) + codes.amin(-1, keepdim=True)) / 2).ceil()
    out = codes.new_empty(len(codes), outs)
    if not out.numel():
        return out.reshape(*codes_NI.shape[:-1], outs)
    blocks = (triton.cdiv(len(codes), _TOKENS), triton.cdiv(outs, _OUTS))
    _product[blocks](
        (codes - middle).to(torch.int8), middle.to(torch.int32), times_N1.reshape(-1).float(), planes,
        scale_O1.contiguous(), zero_O1.contiguous(), out, len(codes), outs, width, packed_bytes(width, 1),
        BITS=bits, TOKENS=_TOKENS, OUTS=_OUTS, DEPTH=_DEPTH,
    )  # fmt: skip
    return out.reshape(*codes_NI.shape[:-1], outs)
