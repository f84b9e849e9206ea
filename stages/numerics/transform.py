"""Block Hadamard rotation: applied to activations on the fly, folded into weights offline.

Source: QuaRot (2404.00456), sec. 3. Q is block-diagonal: the input width is cut into equal blocks of a power of two,
and each is the Sylvester Hadamard matrix over sqrt(block), symmetric and its own inverse: x W^T = (x Q) (W Q)^T.
"""

from __future__ import annotations

import torch
from torch import Tensor

BF16_ON_CPU = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether this CPU multiplies bfloat16 matrices natively; others take several times as long as for float32."""
_MULTIPLIED = 32
"""The block that a CPU multiplies by; larger blocks follow by sums and differences, which take less time."""


def block_size(width: int, largest: int) -> int:
    """The rotation's block for an input `width`: a power of two dividing it, at most `largest` (1 = no rotation)."""
    block = 1
    while block * 2 <= largest and width % (block * 2) == 0:
        block *= 2
    return block


def hadamard(block: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The Sylvester Hadamard matrix over sqrt(block), [block, block]; `block` is a power of two."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < block:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    normalised: Tensor = h / block**0.5
    return normalised.to(device=device, dtype=dtype)


def rotate(x: Tensor, h_BB: Tensor) -> Tensor:
    """x Q: `x` [..., in] with every block of its last axis multiplied by `h_BB` (a `hadamard` of the dtype of `x`).

    The block divides `in`. Sums are in float32 or wider; the dtype of `x` is kept.
    """
    block = h_BB.shape[0]
    if block == 1:
        return x
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not BF16_ON_CPU:
        return rotate(x.float(), h_BB.float()).to(x.dtype)
    if block > _MULTIPLIED and _in_factors(x):
        return _rotate_in_factors(x, h_BB)
    rotated: Tensor = x.unflatten(-1, (-1, block)) @ h_BB
    return rotated.flatten(-2)


def _in_factors(x: Tensor) -> bool:
    """Whether sums in place take less time, and neither a compiler nor a gradient forbids them."""
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
    """Q^T G Q: the Gram matrix of rotated inputs, of `gram_II` [in, in]."""
    return rotate(rotate(gram_II, h_BB).T, h_BB).T
