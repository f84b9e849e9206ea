"""x W^T + b of float32 numbers on a CPU, by oneDNN where that is faster.

torch multiplies float32 matrices by MKL, which uses half of the width of an AVX-512 CPU that is not Intel's. oneDNN,
which torch has for bfloat16, convolutions and compiled graphs, uses all of it: twice the speed on a Zen 5
(`python -m tests.bench.products`). Sums are in another order, so the last digits differ.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether this CPU and this torch have what that takes."""
LEAST = 2**21
"""Multiplications below which a call of oneDNN takes longer than MKL does."""


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`functional.linear`: `x` [..., in] times the transpose of `weight_OI` [out, in], and the bias added. Where a
    gradient is wanted, or a compiler looks on, it is torch's own."""
    if not _takes(x, weight_OI, bias_O):
        return functional.linear(x, weight_OI, bias_O)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")
    return product


def times_symmetric(x: Tensor, h_BB: Tensor) -> Tensor:
    """`x` [..., n] times a symmetric matrix [n, n], by oneDNN where `linear` is; else torch's own product."""
    h = h_BB.contiguous()
    return linear(x, h) if _takes(x, h, None) else x @ h_BB


def _takes(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> bool:
    if not ONEDNN or x.dtype != torch.float32 or weight_OI.dtype != torch.float32 or x.device.type != "cpu":
        return False
    if x.numel() * len(weight_OI) < LEAST or torch.compiler.is_compiling():
        return False
    if not (weight_OI.is_contiguous() or weight_OI.T.is_contiguous()):  # a part of another: oneDNN is very slow there
        return False
    wanted = any(each is not None and each.requires_grad for each in (x, weight_OI, bias_O))
    return not (torch.is_grad_enabled() and wanted)


class Linear(nn.Linear):
    """An `nn.Linear` that multiplies by `linear`; reports call it as they call torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def use_faster_products(module: nn.Module) -> None:
    """Have every plain linear layer in `module` multiply by `linear`, if that makes a difference here."""
    for layer in module.modules() if ONEDNN else ():
        if type(layer) is nn.Linear and layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu":
            layer.__class__ = Linear
