"""The GPU kernel against the definition: on a GPU, or else in the interpreter of Triton if that is installed."""

from __future__ import annotations

import os

import pytest
import torch

from adatsq_pipe.stages.runtime.spec import WEIGHT_BITS
from tests.stages.runtime.test_linear import filled, spec_with

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU here; with Triton installed, TRITON_INTERPRET=1 runs these on the CPU", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("weights", WEIGHT_BITS)
@pytest.mark.parametrize("activations", [3, 8])
@pytest.mark.parametrize(("tokens", "width", "out"), [(5, 40, 7), (70, 129, 66)])
def test_the_kernel_gives_what_the_reference_gives(
    weights: int, activations: int, tokens: int, width: int, out: int
) -> None:
    from adatsq_pipe.stages.numerics.grid import token_codes
    from adatsq_pipe.stages.runtime.kernels import packed_product

    layer = filled(spec_with(weight_bits=weights), width, out, weights).to(DEVICE)
    layer.bits, layer.execution = activations, "reference"
    x = (torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(1)) * 3 - 1).to(DEVICE)
    x[0, 0] = 0
    codes, times = token_codes(x, 2.0**activations - 1, symmetric=False)
    got = packed_product(codes, times, layer.codes, layer.scale, layer.zero, bits=weights) + layer.bias
    wanted = layer(x)
    assert (got - wanted).norm() <= 1e-3 * wanted.norm()


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU here: the layer takes the kernel on one only")
def test_the_layer_takes_the_kernel_on_a_gpu() -> None:
    layer = filled(spec_with(block=8), 128, 64, 1).to(DEVICE)
    x = torch.randn(33, 128, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for bits in (3, 8):
        layer.bits, layer.execution = bits, "reference"
        wanted = layer(x)
        layer.execution = "packed"
        assert (layer(x) - wanted).norm() <= 1e-3 * wanted.norm()
