"""The arithmetic of a quantized layer once more, slow and plain: loops over rows, columns and bits, in float64.

Nothing here calls the package. A test compares what a worker has written with these. Axes: O and I output and input
channels, G groups of input channels, N tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hadamard(width: int) -> Tensor:
    """Sylvester's matrix over sqrt(width), [width, width] float64: entry (i, j) is -1 to the shared bits of i and j."""
    rows = [[(-1.0) ** bin(i & j).count("1") for j in range(width)] for i in range(width)]
    return torch.tensor(rows, dtype=torch.float64) / width**0.5


def rotated(x: Tensor, block: int) -> Tensor:
    """`x` [..., I] with every `block` channels multiplied by `hadamard(block)`, float64."""
    h, x = hadamard(block), x.double()
    return torch.cat([x[..., i : i + block] @ h for i in range(0, x.shape[-1], block)], -1)


def grid(
    w_OI: Tensor, bits: int, *, group: int = 0, symmetric: bool = False, clip: bool = False
) -> tuple[Tensor, Tensor]:
    """(scale [O, G] as bfloat16 holds it, zero [O, G]) of every row's groups: min-max with 0 in it, or the clipping
    ratio out of 1, .985, ... .415 with the least sum of |error|^2.4, at two bits
    |error|^3. Float32 decides, as floats near a tie would."""
    scales, zeros = [], []
    for row in w_OI.float():
        for part in row.split(group or len(row)):
            low, high = part.min().clamp(max=0), part.max().clamp(min=0)
            ratios = [1 - i * (1 - 0.4) / 40 for i in range(40)] if clip else [1.0]
            errors, found = [], []
            for ratio in ratios:
                scale, zero = _range(low * ratio, high * ratio, bits, symmetric)
                held = (codes_of(part, scale, zero, bits) - zero) * scale
                errors.append(float((held - part).abs().pow(3 if bits == 2 else 2.4).sum()))
                found.append((scale, zero))
            scale, zero = found[errors.index(min(errors))]
            scales.append(float(scale.bfloat16()))
            zeros.append(float(zero))
    shape = (len(w_OI), -1)
    return torch.tensor(scales).reshape(shape), torch.tensor(zeros).reshape(shape)


def _range(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    if symmetric:
        return 2 * max(-low, high) / (2**bits - 1), torch.tensor(2.0 ** (bits - 1))
    scale = (high - low) / (2**bits - 1)
    return scale, torch.round(-low / scale)


def codes_of(w: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Nearest codes, 0 to 2^bits - 1; `scale` and `zero` broadcast."""
    return (torch.round(w / scale) + zero).clamp(0, 2**bits - 1)


def values(codes_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor) -> Tensor:
    """(code - zero) * scale of every code, one at a time, [O, I] float64."""
    out, width = codes_OI.shape
    size = width // scale_OG.shape[1]
    held = torch.zeros(out, width, dtype=torch.float64)
    for o in range(out):
        for i in range(width):
            scale, zero = float(scale_OG[o, i // size]), float(zero_OG[o, i // size])
            held[o, i] = (float(codes_OI[o, i]) - zero) * scale
    return held


def half(matrix_II: Tensor) -> Tensor:
    """A symmetric matrix as it is stored: of every row the numbers from the square on the diagonal on."""
    return torch.cat([row[64 * (i // 64) :] for i, row in enumerate(matrix_II)])


def from_half(half: Tensor) -> Tensor:
    """The matrix that is stored so."""
    width = next(n for n in range(1, len(half) + 1) if sum(n - 64 * (i // 64) for i in range(n)) == len(half))
    found, numbers = torch.zeros(width, width, dtype=half.dtype), iter(half.tolist())
    for i in range(width):
        for j in range(64 * (i // 64), width):
            found[i, j] = found[j, i] = next(numbers)
    return found


def error(w_OI: Tensor, held_OI: Tensor, gram_II: Tensor) -> float:
    """||W - Q||_H^2 / ||W||_H^2, the norm of a row being w H w^T."""
    gram = gram_II.double()
    off, whole = (w_OI.double() - held_OI.double()), w_OI.double()
    return sum(float(d @ gram @ d) for d in off) / sum(float(w @ gram @ w) for w in whole)


def gptq(
    w_OI: Tensor, gram_II: Tensor, scale_OG: Tensor, zero_OG: Tensor, bits: int, *, damping: float, act_order: bool
) -> Tensor:
    """Codes [O, I] of GPTQ (2210.17323) with the explicit inverse of the damped Hessian of the columns not yet rounded,
    inverted again for every column; groups stay those of the original order."""
    width = w_OI.shape[1]
    h = gram_II.double() + damping * float(gram_II.double().diagonal().mean()) * torch.eye(width, dtype=torch.float64)
    diagonal = gram_II.double().diagonal().tolist()
    left = sorted(range(width), key=lambda i: -diagonal[i]) if act_order else list(range(width))
    w, codes = w_OI.double().clone(), torch.zeros(w_OI.shape, dtype=torch.float64)
    size = width // scale_OG.shape[1]
    while left:
        inverse = torch.linalg.inv(h[left][:, left])
        column = left[0]
        scale, zero = scale_OG[:, column // size].double(), zero_OG[:, column // size].double()
        codes[:, column] = codes_of(w[:, column], scale, zero, bits)
        off = (w[:, column] - (codes[:, column] - zero) * scale) / inverse[0, 0]
        for place, other in enumerate(left):
            w[:, other] -= off * inverse[0, place]
        left = left[1:]
    return codes


def token_rounded(x_NI: Tensor, bits: int, *, group: int = 0) -> Tensor:
    """Every token, or group of its channels, rounded to its own min-max grid with 0 in it, and back; float64."""
    rows = []
    for token in x_NI.double():
        parts = []
        for part in token.split(group or len(token)):
            low, high = float(part.min().clamp(max=0)), float(part.max().clamp(min=0))
            scale = (high - low) / (2**bits - 1)
            zero = torch.round(torch.tensor(-low / scale, dtype=torch.float64))
            parts.append((codes_of(part, torch.tensor(scale, dtype=torch.float64), zero, bits) - zero) * scale)
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def unpacked(packed_OB: Tensor, bits: int, width: int) -> Tensor:
    """Codes [O, width] of packed bytes, bit by bit: of the eight segments of a row, the k-th codes make a word whose
    byte i lies at i * length + k."""
    length = -(-width // 8)
    codes = torch.zeros(len(packed_OB), width, dtype=torch.int64)
    for o, row in enumerate(packed_OB.tolist()):
        for column in range(width):
            segment, k = divmod(column, length)
            for bit in range(bits):
                place = segment * bits + bit
                codes[o, column] |= (row[place // 8 * length + k] >> place % 8 & 1) << bit
    return codes
