"""The GPU kernels pass a GPU's compiler, which needs Triton and no GPU: what its interpreter takes, that may refuse."""

from __future__ import annotations

import os
from typing import Any

import pytest

from adatsq_pipe.stages.runtime.spec import WEIGHT_BITS

pytestmark = pytest.mark.extended
triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted", allow_module_level=True)


def compiled(kernel: Any, pointers: dict[str, str], constants: dict[str, Any], *, aligned: bool, warps: int) -> str:
    """PTX of a kernel for an H100, whose integers and addresses are multiples of 16 or not; others are int32."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {name: pointers.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
    sixteen = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(kinds.values())
        if aligned and (kind.startswith("*") or kind == "i32")
    }
    source = ASTSource(kernel, signature=kinds, constexprs=constants, attrs=sixteen)
    ptx: str = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["ptx"]
    return ptx


@pytest.mark.parametrize(
    ("bits", "count", "even"),
    [*((bits, 4608, True) for bits in WEIGHT_BITS), (3, 700, True), (3, 1, True), (3, 50, False), (8, 50, False)],
)
def test_products_take_the_tensor_cores(bits: int, count: int, even: bool) -> None:
    from adatsq_pipe.stages.runtime import kernels

    tile, warps = kernels._tile(count)
    pointers = {"a": "*i8", "times": "*fp32", "offset": "*i32", "of_tokens": "*i32", "planes": "*u8", "scale": "*bf16"}
    pointers |= {"zero": "*u8", "of_outs": "*i32", "bias": "*bf16", "out": "*bf16"}
    constants = {"BITS": bits, "CUTS": kernels._cuts(bits), "EVEN": even, "BIASED": True, "SHIFTED": True}
    constants |= {"TOKENS": tile, "OUTS": kernels._OUTS, "DEPTH": kernels._DEPTH if even else 32}
    constants |= {"GROUP": kernels._GROUP, "STAGES": kernels._STAGES}
    ptx = compiled(kernels._product, pointers, constants, aligned=even, warps=warps)
    assert "wgmma.mma_async" in ptx and ".s32.s8.s8" in ptx


@pytest.mark.parametrize(("kind", "block"), [("*bf16", 128), ("*bf16", 16), ("*bf16", 0), ("*fp16", 128), ("*fp32", 0)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_tokens_compile(kind: str, block: int, symmetric: bool) -> None:
    from adatsq_pipe.stages.runtime import kernels

    pointers = {"x": kind, "h": kind, "codes": "*i8", "times": "*fp32", "offset": "*i32", "total": "*i32"}
    constants = {"SYMMETRIC": symmetric, "ROTATED": bool(block), "ROWS": kernels._ROWS}
    constants |= {"COLUMNS": block or kernels._COLUMNS}
    for aligned in (True, False):
        assert compiled(kernels._round, {**pointers, "qmax": "fp32"}, constants, aligned=aligned, warps=4)
