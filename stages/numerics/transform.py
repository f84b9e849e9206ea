"""Block rotation: applied to activations on the fly, folded into weights offline.

Source: QuaRot (2404.00456), sec. 3. Q is block-diagonal: the input width is cut into equal blocks of a power of two,
and each is a Hadamard matrix over sqrt(block), symmetric and its own inverse: x W^T = (x Q) (W Q)^T. Sylvester's matrix
adds a block's channels up in its first column; a regular one (ConvRot, 2512.03673), whose columns all have the same
sum, has no such column. Two rotations of other matrices, with an order of channels between, are DuQuant's (2406.01721).
"""

from __future__ import annotations

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.products import times_symmetric

BF16_ON_CPU = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether this CPU multiplies bfloat16 matrices natively; others take several times as long as for float32."""
_MULTIPLIED = 32
"""The block that a CPU multiplies by; larger blocks follow by sums and differences, which take less time."""
_STRIP = 64
"""Rows of a matrix that are rotated at a time in its place, in the cache."""
_TILE = 1024
"""Side of the squares that are exchanged where a matrix is transposed in its place."""


def block_size(width: int, largest: int, *, regular: bool = False) -> int:
    """The rotation's block for an input `width`: a power of two (of a `regular` matrix, of four) dividing it, at most
    `largest` (1 = no rotation)."""
    block, factor = 1, 4 if regular else 2
    while block * factor <= largest and width % (block * factor) == 0:
        block *= factor
    return block


def hadamard(block: int, *, dtype: torch.dtype, device: torch.device | str = "cpu", regular: bool = False) -> Tensor:
    """A Hadamard matrix over sqrt(block), [block, block]: Sylvester's for a power of two, or a `regular` one for a
    power of four, whose rows and columns all add up to 1."""
    h = torch.ones(1, 1, dtype=torch.float64)
    smallest = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    if regular:
        smallest = 1 - 2 * torch.eye(4, dtype=torch.float64).flip(0)
    while h.shape[0] < block:
        h = torch.kron(smallest, h)
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
    if block > _MULTIPLIED and _in_factors(x) and float(h_BB[0, 3]) > 0:  # negative in a regular matrix
        return _rotate_in_factors(x, h_BB)
    rotated: Tensor = x.unflatten(-1, (-1, block)) @ h_BB
    return rotated.flatten(-2)


def _in_factors(x: Tensor) -> bool:
    """Whether sums in place take less time, and neither a compiler nor a gradient forbids them."""
    forbidden = torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled())
    return x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu" and not forbidden


def _rotate_in_factors(x: Tensor, h_BB: Tensor) -> Tensor:
    """`rotate`: Sylvester's H of 2 n is [[H, H], [H, -H]] of n, so a block is cut into parts, each multiplied by the
    same small H, and parts are added and subtracted pairwise."""
    out = times_symmetric(x.reshape(-1, _MULTIPLIED), h_BB[:_MULTIPLIED, :_MULTIPLIED])
    width = h_BB.shape[0]
    while width > _MULTIPLIED:
        first, second = out.view(-1, 2, width // 2).unbind(1)
        first.add_(second)
        torch.sub(first, second, alpha=2, out=second)
        width //= 2
    return out.view(x.shape)


def rotate_twice(x: Tensor, rotations_2BB: Tensor, order_I: Tensor) -> Tensor:
    """`x` [..., in] with every block multiplied by the first of two orthogonal matrices (of the dtype of `x`), its
    channels then put in `order_I` [in], and every block multiplied by the second. The dtype is kept."""
    first, second = rotations_2BB.unbind()
    return _by_blocks(_by_blocks(x, first).index_select(-1, order_I), second)


def rotate_back(x: Tensor, rotations_2BB: Tensor, order_I: Tensor) -> Tensor:
    """The inverse of `rotate_twice`, which is also its transpose."""
    first, second = rotations_2BB.mT.unbind()
    x = _by_blocks(x, second)
    return _by_blocks(torch.empty_like(x).index_copy_(-1, order_I.long(), x), first)


def _by_blocks(x: Tensor, matrix_BB: Tensor) -> Tensor:
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not BF16_ON_CPU:
        return _by_blocks(x.float(), matrix_BB.float()).to(x.dtype)
    rotated: Tensor = x.unflatten(-1, (-1, len(matrix_BB))) @ matrix_BB
    return rotated.flatten(-2)


def rotate_gram(gram_II: Tensor, h_BB: Tensor) -> Tensor:
    """Q^T G Q: the Gram matrix of rotated inputs, in the memory of `gram_II` [in, in], which it overwrites.

    On a CPU a few rows are held besides it, elsewhere one copy. `gram_II` is symmetric.
    """
    if h_BB.shape[0] == 1:
        return gram_II
    # A CPU adds up a row alike whatever its neighbours; a GPU may not.
    size = _STRIP if gram_II.device.type == "cpu" else len(gram_II)
    for rows in gram_II.split(size):
        rows.copy_(rotate(rows, h_BB))
    _transpose(gram_II)
    for rows in gram_II.split(size):
        rows.copy_(rotate(rows, h_BB))
    return gram_II


def _transpose(matrix: Tensor) -> None:
    """Transpose a square matrix in place, tile by tile."""
    width = len(matrix)
    for i in range(0, width, _TILE):
        own = matrix[i : i + _TILE, i : i + _TILE]
        own.copy_(own.T.clone())
        for j in range(i + _TILE, width, _TILE):
            above, below = matrix[i : i + _TILE, j : j + _TILE], matrix[j : j + _TILE, i : i + _TILE]
            kept = above.clone()
            above.copy_(below.T)
            below.copy_(kept.T)
