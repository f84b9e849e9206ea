"""A low-rank branch for what the grid cannot represent: W ~ L + Q(W - L), L of rank r.

Source: SVDQuant (2411.05007), sec. 4.2: L is the truncated SVD of W, here refined by alternating with Q.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.gptq import weighted_error


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A branch L = up down, and the relative output errors of L + Q(W - L)."""

    up_OR: Tensor
    """[out, rank]"""
    down_RI: Tensor
    """[rank, in]"""
    error: float
    """The least of `errors`: that of this branch."""
    errors: tuple[float, ...]
    """The error after every round."""


def truncated_svd(w_OI: Tensor, rank: int, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The nearest matrix of this rank to `w_OI` (Eckart-Young), as (up [out, rank], down [rank, in]), both in `dtype`.

    The SVD is in float64; each factor takes the square root of the singular values.
    """
    u, s, v = torch.linalg.svd(w_OI.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(dtype), (root.unsqueeze(1) * v[:rank]).to(dtype)


def alternate(
    w_OI: Tensor,
    gram_II: Tensor,
    fake_quantize: Callable[[Tensor], Tensor],
    *,
    rank: int,
    rounds: int,
    dtype: torch.dtype = torch.bfloat16,
) -> Branch:
    """Alternates L <- SVD_rank(W - Q(R)) and R <- W - L while the output error under `gram_II` falls.

    `w_OI` is float [out, in], `gram_II` float64 [in, in]; `fake_quantize(R)` is Q: float32 [out, in] rounded to its
    grid and back. L is rounded to `dtype`, in which it is stored, before R is formed. The first round is the SVD of W
    itself; at most `rounds` follow one another, and the best is returned.
    """
    w, best, errors = w_OI.double(), None, list[float]()
    residual = torch.zeros_like(w)
    for _ in range(max(rounds, 1)):
        up, down = truncated_svd(w - residual, rank, dtype=dtype)
        low = up.double() @ down.double()
        residual = fake_quantize((w - low).float()).double()
        errors.append(weighted_error(w, low + residual, gram_II))
        if best is not None and errors[-1] >= best.error:
            break
        best = Branch(up_OR=up, down_RI=down, error=errors[-1], errors=())
    assert best is not None
    return replace(best, errors=tuple(errors))
