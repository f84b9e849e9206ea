"""Block Hadamard rotation: applied to activations on the fly, folded into weights offline.

An input width is cut into equal blocks of the largest power of two that divides it, at most `largest`. The Sylvester
Hadamard matrix over sqrt(block) is symmetric and its own inverse, so x W^T = (x Q) (W Q)^T (QuaRot, 2404.00456).
"""

from __future__ import annotations

import torch
from torch import Tensor

_BF16_ON_CPU = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether this CPU is fit to multiply bfloat16 matrices; others take several times as long as for float32 ones."""
_MULTIPLIED = 32
"""The part of a rotation that a CPU does as a product; the rest it does by sums and differences, which is sooner."""


def block_size(width: int, largest: int) -> int:
    """The rotation's block for an input `width`: a power of two dividing it, at most `largest` (1 = no rotation)."""
    block = 1
    while block * 2 <= largest and width % (block * 2) == 0:
        block *= 2
    return block


def hadamard(block: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The normalised Hadamard matrix `[block, block]`."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < block:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    normalised: Tensor = h / block**0.5
    return normalised.to(device=device, dtype=dtype)


def rotate(x: Tensor, h_BB: Tensor) -> Tensor:
    """`x` [..., in] with every block of its last axis multiplied by `h_BB` (a `hadamard`); sums are in float32, the
    result in the dtype of `x`."""
    block = h_BB.shape[0]
    if block == 1:
        return x
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not _BF16_ON_CPU:
        return rotate(x.float(), h_BB.float()).to(x.dtype)
    if block > _MULTIPLIED and _in_factors(x):
        return _rotate_in_factors(x, h_BB)
    rotated: Tensor = x.unflatten(-1, (-1, block)) @ h_BB
    return rotated.flatten(-2)


def _in_factors(x: Tensor) -> bool:
    """Whether sums in place are sooner, and neither a compiler nor a gradient forbids them."""
    forbidden = torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled())
    return x.dtype == torch.float32 and x.device.type == "cpu" and not forbidden


def _rotate_in_factors(x: Tensor, h_BB: Tensor) -> Tensor:
    """`rotate`: Sylvester's H of 2 n is [[H, H], [H, -H]] of n, so a block is cut into parts, each multiplied by the
    same small H, and parts are added and subtracted pairwise."""
    out = x.reshape(-1, _MULTIPLIED) @ h_BB[:_MULTIPLIED, :_MULTIPLIED]
    width = h_BB.shape[0]
    while width > _MULTIPLIED:
        first, second = out.view(-1, 2, width // 2).unbind(1)
        first.add_(second)
        torch.sub(first, second, alpha=2, out=second)
        width //= 2
    return out.view(x.shape)


def rotate_gram(gram_II: Tensor, h_BB: Tensor) -> Tensor:
    """Gram matrix of rotated inputs: Q^T G Q."""
    return rotate(rotate(gram_II, h_BB).T, h_BB).T
