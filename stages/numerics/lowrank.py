"""A low-rank branch that takes what the grid cannot hold: W ~ L + Q(W - L) (SVDQuant, 2411.05007)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.gptq import weighted_error


@dataclass(frozen=True, kw_only=True)
class Branch:
    """`up_OR` and `down_RI` with L = up down, the error with it in place, and that of every round that was tried."""

    up_OR: Tensor
    down_RI: Tensor
    error: float
    errors: tuple[float, ...]


def truncated_svd(w_OI: Tensor, rank: int, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The best approximation of `w_OI` of this rank, as (up [out, rank], down [rank, in]), both in `dtype`."""
    u, s, v = torch.linalg.svd(w_OI.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(dtype), (root.unsqueeze(1) * v[:rank]).to(dtype)


def alternate(
    w_OI: Tensor,
    gram_II: Tensor,
    quantized: Callable[[Tensor], Tensor],
    *,
    rank: int,
    rounds: int,
    dtype: torch.dtype = torch.bfloat16,
) -> Branch:
    """Alternate L <- SVD_rank(W - Q(R)) and R <- W - L while the output error under `gram_II` falls.

    `quantized(R)` gives the values that the grid would hold of a residual. The branch is rounded to `dtype`, in which
    it is stored, before R is formed. The first round is SVD of W itself; the best round is kept.
    """
    w, best, errors = w_OI.double(), None, list[float]()
    held = torch.zeros_like(w)
    for _ in range(max(rounds, 1)):
        up, down = truncated_svd(w - held, rank, dtype=dtype)
        low = up.double() @ down.double()
        held = quantized((w - low).float()).double()
        errors.append(weighted_error(w, low + held, gram_II))
        if best is not None and errors[-1] >= best.error:
            break
        best = Branch(up_OR=up, down_RI=down, error=errors[-1], errors=())
    assert best is not None
    return Branch(up_OR=best.up_OR, down_RI=best.down_RI, error=best.error, errors=tuple(errors))
