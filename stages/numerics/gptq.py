"""GPTQ: rounds a weight column by column and feeds each rounding error forward to the columns not yet rounded.

Source: GPTQ (2210.17323), algorithm 1, in the form of LDLQ (QuIP, 2307.13304, sec. 3), which rounds every column to the
same code: with H = (U + I) D (U + I)^T and U strictly upper triangular, column i is rounded at W_i plus the errors of
the columns before it times U's column i. The form needs one factorization of H and no inverse, and what is rounded off
at each column is already the output error. Act-order, static groups and percdamp (here `damping`) follow the authors'
code. H is the Gram matrix X^T X of the inputs: the paper's factor 2 scales H and the damping alike and changes no code.
The factor is found in float64, of wide layers in float32 where the damping allows it; columns are rounded in float32.
What wide layers feed from block to block is multiplied in bfloat16 where the hardware does that natively. Either makes
another rounding of the weight, on average as good; the error that is stated is right all the same.
Left out: groups whose grid is fitted during the solve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.grid import Grid
from adatsq_pipe.stages.numerics.products import linear
from adatsq_pipe.stages.numerics.transform import BF16_ON_CPU

BLOCK = 128
"""Columns that are rounded before their errors are fed to the rest (GPTQ, sec. 3.3, step 2)."""
SMALL_BLOCK = 32
"""Columns of a wide layer whose errors are fed to the rest of their block."""
WIDE = 512
VERY_WIDE = 1024
"""Inputs from which a layer is factored in float32 and by blocks, and feeds in bfloat16."""
SINGLE = 0.01
"""The least damping beside which float32 will do: it moves H by 1e-6 of its mean diagonal, and by up to 3e-4 where all
inputs are close to one direction."""
FACTORED, FACTORED_AT_ONCE = 512, 128
"""Rows of such a layer's matrix that meet the rows above them at once; and those that are factored at once."""
TURNED = 2**18
"""Numbers of a matrix that change places with as many others at a time, in the cache."""
DAMPING_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class Factor:
    """The damped Gram matrix of a layer's inputs, factored. It serves every weight that these inputs meet.

    Columns stand in the order in which they are rounded.
    """

    order_I: Tensor
    """int64 [in]: the weight's column at each place."""
    feedback_II: Tensor
    """float32 [in, in]: U^T of H = (U + I) D (U + I)^T, with ones on the diagonal; row i is what column i is fed."""
    D_I: Tensor
    """float64 [in]: the diagonal of D."""
    added_I: Tensor
    """float64 [in]: what stands on H's diagonal beyond the inputs' own."""
    damping: float
    """The damping that made H positive definite, as a share of its mean diagonal."""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A weight's codes and what they cost."""

    codes_OI: Tensor
    """uint8 [out, in], in the weight's own column order."""
    squared_error: float
    """tr((W - Q) H (W - Q)^T) of the codes' values Q, without damping."""
    damping: float


def for_products(H_II: Tensor) -> Tensor:
    """A Gram matrix [in, in] in the dtype that `squared_output` multiplies by: bfloat16 of wide inputs where the
    hardware does that natively, else float32. Worth keeping where several weights meet it."""
    return H_II.bfloat16() if len(H_II) > WIDE and (H_II.is_cuda or BF16_ON_CPU) else H_II.float()


def squared_output(W_OI: Tensor, H_II: Tensor) -> float:
    """tr(W H W^T): the squared output of a weight [out, in] for inputs of Gram matrix `H_II` [in, in].

    H is symmetric, so half of the products are left out. They are in the dtype of `for_products`; bfloat16 changes the
    sum by less than 1e-3 of itself. Sums are in float64.
    """
    H = for_products(H_II)
    W, rows = W_OI.to(H.dtype), W_OI.float()
    total = torch.zeros((), dtype=torch.float64, device=W.device)
    size = WIDE // 2 if H.dtype == torch.bfloat16 else WIDE  # faster products want smaller parts
    for start in range(0, W.shape[1], size):
        stop = start + size
        twice = H[:stop, start:stop].clone()
        twice[:start] *= 2  # for the products that are left out
        output = W[:, :stop] @ twice
        total += torch.mul(output, rows[:, start:stop]).sum(1).sum(dtype=torch.float64)
    return float(total)


def weighted_error(W_OI: Tensor, Q_OI: Tensor, H_II: Tensor) -> float:
    """tr((W - Q) H (W - Q)^T) / tr(W H W^T): the output error of Q relative to the output of W.

    `W_OI` and `Q_OI` are float [out, in], `H_II` is the Gram matrix [in, in] of the inputs. Not for a Q that was chosen
    under H, whose error hides in the last digits of its output: see Solution.squared_error.
    """
    return squared_output(W_OI - Q_OI, H_II) / max(squared_output(W_OI, H_II), 1e-300)


def precision(width: int, damping: float) -> torch.dtype:
    """The dtype in which a Gram matrix of so many inputs is factored first, and needs no more digits before."""
    return torch.float32 if width >= VERY_WIDE and damping >= SINGLE else torch.float64


def factor(H_II: Tensor, *, damping: float, act_order: bool) -> Factor:
    """The factor of `H_II` (float32 or float64 [in, in], positive semidefinite) with `damping` times its mean diagonal
    added to its diagonal; the damping grows tenfold while H is not positive definite.

    Inputs that are always zero take the mean diagonal, so that their columns are rounded to nearest. With `act_order`
    columns are taken by falling diagonal of H. Raises ValueError if no damping helps.
    """
    diagonal = H_II.diagonal().double()
    dead = diagonal == 0
    filled = torch.where(dead, diagonal.mean().clamp(min=1e-30), diagonal)
    width = len(filled)
    order = (
        torch.argsort(filled, descending=True, stable=True) if act_order else torch.arange(width, device=H_II.device)
    )
    mean, used = filled.mean().clamp(min=1e-30), damping
    backward = order.flip(0)
    for _ in range(DAMPING_TRIES):
        for dtype in dict.fromkeys((precision(width, damping), torch.float64)):
            root = _reordered(H_II, backward, dtype)  # overwritten: FLUX's widest takes 1 GB
            root.diagonal().copy_((filled + used * mean)[backward])
            if _factor_in_place(root):
                D, scale = root.diagonal().double().flip(0).square(), root.diagonal().float().clone()
                feedback = _turned(root.float().div_(scale.unsqueeze(1)))
                added = (filled - diagonal + used * mean)[order]
                return Factor(order_I=order, feedback_II=feedback, D_I=D, added_I=added, damping=used)
        used = max(used * 10, 1e-6)
    raise ValueError(f"Gram matrix stayed singular up to a damping of {used:g} of its mean diagonal")


def _factor_in_place(H_II: Tensor) -> bool:
    """Put U of H = U^T U (upper triangular, zeros below) in the place of `H_II` [in, in]; False if H is not positive
    definite.

    Wide matrices on a CPU go by blocks of rows, each less the product of the rows above it: LAPACK takes half as long
    again there.
    """
    width = len(H_II)
    if width < VERY_WIDE or H_II.is_cuda:
        failed = torch.empty((), dtype=torch.int32, device=H_II.device)
        torch.linalg.cholesky_ex(H_II.mT, out=(H_II.mT, failed))  # LAPACK's order of numbers: neither reads a copy
        return not failed
    for start in range(0, width, FACTORED):
        panel = H_II[start : start + FACTORED]
        _subtract(panel[:, start:], H_II[:start, start:])
        for first in range(0, len(panel), FACTORED_AT_ONCE):
            place = start + first
            rows = panel[first : first + FACTORED_AT_ONCE]
            stop = place + len(rows)
            _subtract(rows[:, place:], panel[:first, place:])
            root, info = torch.linalg.cholesky_ex(rows[:, place:stop].double(), upper=True)
            if info:
                return False
            rows[:, :place] = 0
            rows[:, place:stop] = root
            inverse = torch.linalg.solve_triangular(root.T, torch.eye(len(rows)).to(root), upper=False)
            rows[:, stop:] = linear(inverse.to(H_II.dtype), rows[:, stop:].contiguous().T)
    return True


def _subtract(rows: Tensor, above: Tensor) -> None:
    """Take from `rows` [rows, columns] what the rows above them, [above, columns], explain: the product of those with
    the first columns, as many as there are rows."""
    if len(above):
        rows -= linear(above[:, : len(rows)].T, above.contiguous().T)


def _reordered(H_II: Tensor, order_I: Tensor, dtype: torch.dtype) -> Tensor:
    """The upper triangle of `H_II` [in, in] with its rows and columns in `order_I`; below it, anything. A few rows at a
    time, which stay in the cache."""
    found = torch.empty(H_II.shape, dtype=dtype, device=H_II.device)
    for start in range(0, len(order_I), BLOCK):
        part = slice(start, start + BLOCK)
        found[part, start:] = H_II[order_I[part]].index_select(1, order_I[start:])
    return found


def _turned(matrix: Tensor) -> Tensor:
    """`matrix.flip(0, 1)`, in its own memory: all its numbers from the last to the first."""
    numbers, count = matrix.view(-1), matrix.numel()
    for start in range(0, count // 2, TURNED):
        stop = min(start + TURNED, count // 2)
        first, last = numbers[start:stop], numbers[count - stop : count - start]
        kept = first.flip(0)
        first.copy_(last.flip(0))
        last.copy_(kept)
    return matrix


def solve(W_OI: Tensor, factor: Factor, grid: Grid) -> Solution:
    """Codes on `grid` of `W_OI` (float [out, in]) that preserve X W^T for the inputs of `factor`.

    The grid's groups are those of the weight's own column order (static groups).
    """
    out, width = W_OI.shape
    order, feedback = factor.order_I, factor.feedback_II
    # The weight, column by column, since columns are rounded together.
    columns = W_OI.float().T.contiguous()
    group_of = (order // (width // grid.scale_OG.shape[1])).tolist()
    scale, zero = grid.scale_OG.T.contiguous(), grid.zero_OG.T.contiguous()
    codes = torch.empty(width, out, dtype=torch.uint8, device=columns.device)
    wide = width >= VERY_WIDE
    half, small = wide and (columns.is_cuda or BF16_ON_CPU), SMALL_BLOCK if wide else BLOCK
    fed = torch.empty_like(columns, dtype=torch.bfloat16 if half else torch.float32)
    """The errors of the columns that are rounded already."""
    squared = torch.zeros((), dtype=torch.float64, device=columns.device)

    def round_columns(target: Tensor, errors: Tensor, found: Tensor, first: int, start: int) -> None:
        """Round the columns from `first` on of the block from `start` on, whose targets lack only what they feed each
        other. Each makes room for its error."""
        for i, (t, code) in enumerate(zip(target.unbind(), found.unbind(), strict=True), first):
            s, z = scale[group_of[i]], zero[group_of[i]]
            t.addmv_(errors[first - start : i - start].T, feedback[i, first:i])
            torch.div(t, s, out=code).round_().add_(z).clamp_(0, grid.qmax)
            value = torch.sub(code, z).mul_(s)
            errors[i - start].sub_(value)
            t.sub_(value)

    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = columns.index_select(0, order[start:stop])
        if half:
            target = errors + feedback[start:stop, :start].bfloat16() @ fed[:start]
        else:
            target = torch.addmm(errors, feedback[start:stop, :start], fed[:start])
        found = torch.empty_like(target)
        for first, part, codes_in in zip(
            range(start, stop, small), target.split(small), found.split(small), strict=True
        ):
            if first > start:
                part += linear(feedback[first : first + len(part), start:first], errors[: first - start].T)
            round_columns(part, errors, codes_in, first, start)
        codes.index_copy_(0, order[start:stop], found.to(torch.uint8))
        fed[start:stop] = errors
        off = target.square_().sum(1, dtype=torch.float64)
        squared += (off * factor.D_I[start:stop]).sum()
        squared -= (errors.square().sum(1, dtype=torch.float64) * factor.added_I[start:stop]).sum()
    return Solution(codes_OI=codes.T.contiguous(), squared_error=max(float(squared), 0.0), damping=factor.damping)
