"""Triton kernels for packed execution on a GPU: one rounds tokens to int8 codes, one multiplies them by packed weights.

Integers of up to eight bits are exact in int8 and their sums in int32, so one kernel serves every activation bit-width
of a policy, and the tiling does not change a bit of the result. Weights are unpacked in registers, four codes to an
instruction, on their way to the tensor cores. Without a GPU the kernels run only in Triton's interpreter
(TRITON_INTERPRET=1), which accepts more than a GPU's compiler does; the tests use both.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatsq_pipe.stages.numerics.packing import SEGMENTS, packed_bytes, unpack

if TYPE_CHECKING:
    from adatsq_pipe.stages.runtime.linear import QuantizedLinear

_OUTS, _DEPTH, _STAGES, _GROUP = 128, 128, 3, 4
_ROWS, _COLUMNS = 16, 128
_HALF = tl.constexpr(12582912.0)
"""1.5 times 2^23: added to a float32 below 2^22 and subtracted again, it leaves the nearest integer, ties to even."""


def _tile(count: int) -> tuple[int, int]:
    """Tokens in a tile, and warps, for `count` tokens. Of ten tilings tried on an H100 with 4,608 tokens the largest
    was the fastest overall; the smaller ones waste less of a tile when tokens are few and have not been timed."""
    return (16, 4) if count <= 16 else (128, 4) if count <= 1024 else (256, 8)


class TokenCodes(NamedTuple):
    """Rounded tokens: value = (codes + offset) times. Offsets are for codes that would not fit int8 without them."""

    codes: Tensor
    """int8 [N, in]"""
    times: Tensor
    """float32 [N]"""
    offset: Tensor
    """int32 [N]; not 0 only for eight bits on an asymmetric grid"""
    total: Tensor
    """int32 [N], the sum of codes and offsets over the input channels."""


@triton.jit
def _nearest(x):  # type: ignore[no-untyped-def]
    return (x + _HALF) - _HALF


@triton.jit  # type: ignore[untyped-decorator]
def _loaded(x, h, n, start, tokens, width, COLUMNS: tl.constexpr, ROTATED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Columns from `start` of the rows `n`, rotated in the dtype of `x`, as float32."""
    k = start + tl.arange(0, COLUMNS)
    found = tl.load(x + n[:, None].to(tl.int64) * width + k[None, :], (n < tokens)[:, None] & (k < width)[None, :], 0.0)
    if ROTATED:
        side = tl.arange(0, COLUMNS)
        turn = tl.load(h + side[:, None] * COLUMNS + side[None, :])
        found = tl.dot(found, turn, out_dtype=tl.float32).to(found.dtype)
    return found.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _round(  # type: ignore[no-untyped-def]
    x, h, codes, times, offset, total, qmax, tokens, width,
    SYMMETRIC: tl.constexpr, ROTATED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    least, most = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, width, COLUMNS):
        found = _loaded(x, h, n, start, tokens, width, COLUMNS, ROTATED)
        least, most = tl.minimum(least, found), tl.maximum(most, found)
    low, high = tl.min(least, 1), tl.max(most, 1)
    if SYMMETRIC:
        half = (qmax - 1) / 2
        scale = tl.maximum(tl.div_rn(tl.maximum(-low, high), half + 0 * low), 1e-12)
        floor, ceiling = -half + 0 * low, half + 0 * low
        middle = 0 * low
    else:
        scale = tl.maximum(tl.div_rn(high - low, qmax + 0 * low), 1e-12)
        floor = _nearest(tl.div_rn(low, scale))
        ceiling = floor + qmax
        middle = tl.where(qmax > 127, floor + 128, 0.0)
    summed = tl.zeros((ROWS, COLUMNS), tl.int32)
    for start in range(0, width, COLUMNS):
        found = _loaded(x, h, n, start, tokens, width, COLUMNS, ROTATED)
        whole = _nearest(tl.div_rn(found, scale[:, None] + 0 * found))
        whole = tl.minimum(tl.maximum(whole, floor[:, None]), ceiling[:, None])
        k = start + tl.arange(0, COLUMNS)
        inside = (n < tokens)[:, None] & (k < width)[None, :]
        summed += tl.where(inside, whole, 0.0).to(tl.int32)
        place = codes + n[:, None].to(tl.int64) * width + k[None, :]
        tl.store(place, (whole - middle[:, None]).to(tl.int8), mask=inside)
    tl.store(times + n, scale, mask=n < tokens)
    tl.store(offset + n, middle.to(tl.int32), mask=n < tokens)
    tl.store(total + n, tl.sum(summed, 1), mask=n < tokens)


def token_codes(x_NI: Tensor, h_BB: Tensor | None, *, qmax: float, symmetric: bool) -> TokenCodes:
    """The grids of `numerics.grid.token_codes` for tokens [..., in], rotated by `h_BB` first if there is one.

    `qmax` is 2^bits - 1, at most 255. `h_BB` needs bfloat16 or float16 tokens and has their dtype; its block is at
    least 16 and divides the input width.
    """
    width = x_NI.shape[-1]
    x = x_NI.reshape(-1, width).contiguous()
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    times = torch.empty(len(x), dtype=torch.float32, device=x.device)
    offset, total = (torch.empty(len(x), dtype=torch.int32, device=x.device) for _ in range(2))
    if len(x):
        block = _COLUMNS if h_BB is None else len(h_BB)
        _round[(triton.cdiv(len(x), _ROWS),)](
            x, x if h_BB is None else h_BB, codes, times, offset, total, float(qmax), len(x), width,
            SYMMETRIC=symmetric, ROTATED=h_BB is not None, ROWS=_ROWS, COLUMNS=block,
        )  # fmt: skip
    return TokenCodes(codes, times, offset, total)


@cache
def _cuts(bits: int) -> tuple[str, ...]:
    """For each segment, PTX that extracts its codes from four bytes of its plane (and of the next): c, or c - 128 for
    eight bits."""
    found = []
    for segment in range(SEGMENTS):
        shift = segment * bits % 8
        below = min(bits, 8 - shift)
        low, high = 2**below - 1, 2**bits - 2**below
        lines = [f"shr.b32 t, $1, {shift};", f"and.b32 $0, t, {_four(low)};"]
        if high:
            lines += [f"shl.b32 t, $2, {below};", f"and.b32 t, t, {_four(high)};", "or.b32 $0, $0, t;"]
        if bits == 8:
            lines.append(f"xor.b32 $0, $0, {_four(128)};")
        found.append("{ .reg .b32 t; " + " ".join(lines) + " }")
    return tuple(found)


def _four(byte: int) -> str:
    return f"0x{byte * 0x01010101:08x}"


@triton.jit  # type: ignore[untyped-decorator]
def _cut(low, high, SEGMENT: tl.constexpr, BITS: tl.constexpr, CUTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """int8 codes of a segment from the bytes that hold their lower bits and, where they straddle, the upper ones."""
    SHIFT: tl.constexpr = SEGMENT * BITS % 8
    if CUTS is not None:
        if SHIFT + BITS <= 8:
            w = tl.inline_asm_elementwise(CUTS[SEGMENT], "=&r,r", [low], dtype=tl.int8, is_pure=True, pack=4)
        else:
            w = tl.inline_asm_elementwise(CUTS[SEGMENT], "=&r,r,r", [low, high], dtype=tl.int8, is_pure=True, pack=4)
    else:
        w = low >> SHIFT
        if SHIFT + BITS > 8:
            w = w | (high << (8 - SHIFT))
        w = w & ((1 << BITS) - 1)
        if BITS == 8:
            w = w ^ 128
        w = w.to(tl.int8, bitcast=True)
    return w


@triton.jit  # type: ignore[untyped-decorator]
def _segment(  # type: ignore[no-untyped-def]
    total, row_n, row_o, length, width,
    SEGMENT: tl.constexpr, BITS: tl.constexpr, CUTS: tl.constexpr, EVEN: tl.constexpr,
    DEPTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`total[o, n]` and the products of one segment: `w[o, k] a[n, k]`."""
    PLANE: tl.constexpr = SEGMENT * BITS // 8
    for start in tl.range(0, length, DEPTH, num_stages=STAGES):
        j = start + tl.arange(0, DEPTH)
        k = SEGMENT * length + j
        if EVEN:
            x = tl.load(row_n + k[:, None])
            low = tl.load(row_o + PLANE * length + j[None, :])
        else:
            x = tl.load(row_n + k[:, None], mask=((j < length) & (k < width))[:, None], other=0)
            low = tl.load(row_o + PLANE * length + j[None, :], mask=(j < length)[None, :], other=0)
        high = low
        if SEGMENT * BITS % 8 + BITS > 8:
            high = tl.load(row_o + (PLANE + 1) * length + j[None, :], mask=(j < length)[None, :], other=0)
        total = tl.dot(_cut(low, high, SEGMENT, BITS, CUTS), x, total, out_dtype=tl.int32)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    a, times, offset, of_tokens, planes, scale, zero, of_outs, bias, out,
    tokens, outs, width, length,
    BITS: tl.constexpr, CUTS: tl.constexpr, EVEN: tl.constexpr, BIASED: tl.constexpr, SHIFTED: tl.constexpr,
    TOKENS: tl.constexpr, OUTS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`out[n, o] = times[n] scale[o] sum_k (a[n, k] + offset[n]) (code[o, k] - zero[o]) + bias[o]`.

    Programs go through `GROUP` tiles of tokens at a time, so that what they read stays in the L2 cache.
    """
    across = tl.cdiv(outs, OUTS)
    first = tl.program_id(0) // (GROUP * across) * GROUP
    height = min(tl.cdiv(tokens, TOKENS) - first, GROUP)
    place = tl.program_id(0) % (GROUP * across)
    o = place // height * OUTS + tl.arange(0, OUTS)
    n = (first + place % height) * TOKENS + tl.arange(0, TOKENS)
    row_o = planes + (o % outs)[:, None].to(tl.int64) * (BITS * length)
    row_n = a + (n % tokens)[None, :].to(tl.int64) * width
    total = tl.zeros((OUTS, TOKENS), tl.int32)
    for segment in tl.static_range(8):
        total = _segment(total, row_n, row_o, length, width, segment, BITS, CUTS, EVEN, DEPTH, STAGES)
    there_o, there_n = o < outs, n < tokens
    centre = (128 if BITS == 8 else 0) - tl.load(zero + o, mask=there_o, other=0).to(tl.int32)
    total += centre[:, None] * tl.load(of_tokens + n, mask=there_n, other=0)[None, :]
    if SHIFTED:
        shift = tl.load(offset + n, mask=there_n, other=0)
        total += tl.load(of_outs + o, mask=there_o, other=0)[:, None] * shift[None, :]
    found = total.to(tl.float32) * tl.load(scale + o, mask=there_o, other=0.0).to(tl.float32)[:, None]
    found = found * tl.load(times + n, mask=there_n, other=0.0)[None, :]
    if BIASED:
        found += tl.load(bias + o, mask=there_o, other=0.0).to(tl.float32)[:, None]
    where = out + n[:, None].to(tl.int64) * outs + o[None, :]
    tl.store(where, tl.trans(found).to(out.dtype.element_ty), mask=there_n[:, None] & there_o[None, :])


def code_sums(planes: Tensor, *, bits: int, width: int) -> Tensor:
    """int32 [out]: sums over the input channels of the codes of packed weights, as the kernel sees them (each less 128
    for eight bits)."""
    rows = max(1, 2**24 // width)
    sums = [unpack(part, bits, width).sum(1, dtype=torch.int32) for part in planes.split(rows)]
    return torch.cat(sums) - (128 * width if bits == 8 else 0)


def packed_product(
    tokens: TokenCodes,
    planes: Tensor,
    scale_O1: Tensor,
    zero_O1: Tensor,
    sums_O: Tensor | None,
    bias_O: Tensor | None,
    *,
    bits: int,
    dtype: torch.dtype,
) -> Tensor:
    """Rounded tokens times packed weights, `[N, out]` in `dtype`.

    `planes` are uint8 as `packing.pack` made them, with a scale and a zero point per output channel; `sums_O` is
    `code_sums` of them, None where no token has an offset.
    """
    (count, width), outs, length = tokens.codes.shape, len(planes), packed_bytes(tokens.codes.shape[1], 1)
    out = torch.empty(count, outs, dtype=dtype, device=planes.device)
    if not out.numel():
        return out
    depth = next((d for d in (_DEPTH, _DEPTH // 2, 32) if length % d == 0), 32)
    tile, warps = _tile(count)
    _product[(triton.cdiv(count, tile) * triton.cdiv(outs, _OUTS),)](
        tokens.codes, tokens.times, tokens.offset, tokens.total,
        planes, scale_O1.contiguous(), zero_O1.contiguous(),
        planes if sums_O is None else sums_O, planes if bias_O is None else bias_O, out,
        count, outs, width, length,
        BITS=bits, CUTS=_cuts(bits) if planes.is_cuda else None, BIASED=bias_O is not None,
        SHIFTED=sums_O is not None,
        EVEN=length % depth == 0 and SEGMENTS * length == width,
        TOKENS=tile, OUTS=_OUTS, DEPTH=depth, GROUP=_GROUP, STAGES=_STAGES, num_warps=warps,
    )  # fmt: skip
    return out


def takes(layer: QuantizedLinear) -> bool:
    """Whether a layer's tokens and output channels have one scale each, and its tokens are rounded now."""
    spec = layer.spec
    other = spec.codebook or spec.activation_codebook or spec.activation_group or spec.time_groups or spec.clip_bins
    return not other and layer.scale.shape[1] == 1 and layer.rounds is not False and layer.bits <= 8


def packed_linear(layer: QuantizedLinear, x: Tensor) -> Tensor:
    """The layer's packed execution for an input [..., in]. Layers with the same input round it once, as elsewhere."""
    spec = layer.spec
    unrounded = layer.transform(x) if spec.rank else None
    if unrounded is not None:
        tokens = token_codes(unrounded, None, qmax=2.0**layer.bits - 1, symmetric=spec.symmetric_activations)
    elif layer.shared is None or layer.has_own_input or x.is_inference():
        tokens = _codes_of_input(layer, x)
    else:
        key = (TokenCodes, layer.bits, spec.block, spec.regular, spec.symmetric_activations)
        tokens = layer.shared.rounded(x, key, lambda: _codes_of_input(layer, x))
    shifted = layer.bits == 8 and not spec.symmetric_activations
    if shifted and (layer.code_sums is None or layer.code_sums.device != layer.codes.device):
        layer.code_sums = code_sums(layer.codes, bits=spec.weight_bits, width=layer.in_features)
    sums = layer.code_sums if shifted else None
    out = packed_product(
        tokens, layer.codes, layer.scale, layer.zero, sums, layer.bias, bits=spec.weight_bits, dtype=x.dtype
    ).reshape(*x.shape[:-1], layer.out_features)
    return out if unrounded is None else out.add_(layer.low_rank_branch(unrounded))


def _codes_of_input(layer: QuantizedLinear, x: Tensor) -> TokenCodes:
    """The input of a layer, transformed and rounded; the kernel rotates where it can."""
    fused = layer.spec.block >= 16 and not layer.spec.dual and x.dtype.itemsize == 2
    ready = layer.permute_and_smooth(x) if fused else layer.transform(x)
    h_BB = layer.rotation(x) if fused else None
    return token_codes(ready, h_BB, qmax=2.0**layer.bits - 1, symmetric=layer.spec.symmetric_activations)
