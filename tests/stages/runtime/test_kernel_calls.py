"""What surrounds the GPU kernels: which layers take them, what they are called with, and the PTX that unpacks codes.

Runs anywhere: the two kernels are replaced by their definition in plain torch, Triton by nothing. test_kernels.py tests
the kernels themselves.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.packing import pack, unpack
from adatsq_pipe.stages.numerics.transform import rotate
from adatsq_pipe.stages.runtime.linear import QuantizedLinear, use_gpu_kernels
from adatsq_pipe.stages.runtime.shared import SharedInput
from adatsq_pipe.stages.runtime.spec import WEIGHT_BITS
from tests.support.quantized_layers import layer_of, output_by_hand, random_layer, random_tensors, spec_with

NAME = "adatsq_pipe.stages.runtime.kernels"


@pytest.fixture(scope="module")
def imported() -> Iterator[ModuleType]:
    if find_spec("triton"):
        yield importlib.import_module(NAME)
        return
    triton: Any = ModuleType("triton")
    triton.language = ModuleType("triton.language")
    triton.language.constexpr = lambda value: value
    triton.jit, triton.cdiv = lambda kernel: kernel, lambda a, b: -(-a // b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton", triton)
        patch.setitem(sys.modules, "triton.language", triton.language)
        module = importlib.import_module(NAME)
    yield module
    del sys.modules[NAME]


@pytest.fixture
def kernels(imported: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module with both kernels replaced by what they are defined to compute; `calls` lists roundings."""

    def token_codes(x: Tensor, h: Tensor | None, *, qmax: float, symmetric: bool) -> Any:
        calls.append(SimpleNamespace(x=x, h=h))
        x = (x if h is None else rotate(x, h)).float().reshape(-1, x.shape[-1])
        if symmetric:
            times = x.abs().amax(1) * 2 / (qmax - 1)
            floor = torch.full_like(times, -(qmax - 1) / 2)
        else:
            low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
            times = (high - low) / qmax
            floor = torch.round(low / times)
        whole = torch.round(x / times[:, None])
        whole = torch.minimum(whole, floor[:, None] + qmax).int()
        offset = (floor + 128).int() if qmax > 127 and not symmetric else torch.zeros(len(x), dtype=torch.int32)
        codes = whole - offset[:, None]
        assert codes.abs().max() <= 128
        return imported.TokenCodes(codes.to(torch.int8), times, offset, whole.sum(1, dtype=torch.int32))

    def packed_product(
        tokens: Any, planes: Tensor, scale: Tensor, zero: Tensor, sums: Tensor | None, bias: Tensor | None, **how: Any
    ) -> Tensor:
        less = 128 if how["bits"] == 8 else 0
        w = unpack(planes, how["bits"], tokens.codes.shape[1]).long() - less
        total = tokens.codes.long() @ w.T + tokens.total[:, None] * (less - zero.long().flatten())
        if sums is not None:
            total = total + tokens.offset[:, None] * sums
        out = total.double() * scale.double().flatten() * tokens.times.double()[:, None]
        return (out if bias is None else out + bias.double()).to(how["dtype"])

    calls = list[SimpleNamespace]()
    monkeypatch.setattr(imported, "token_codes", token_codes)
    monkeypatch.setattr(imported, "packed_product", packed_product)
    monkeypatch.setattr(imported, "calls", calls, raising=False)
    return imported


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) - 0.5


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"symmetric_activations": True},
        {"block": 8},
        {"block": 16},
        {"permuted": True, "smoothed": True, "block": 16},
        {"rank": 2, "block": 16, "smoothed": True},
    ],
)
def test_a_layer_calls_the_kernels_with_its_own_parts(
    parts: dict[str, Any], weight_bits: int, bits: int, kernels: ModuleType
) -> None:
    spec = spec_with(weight_bits=weight_bits, **parts)
    made = random_tensors(spec, 32, 6, 3)
    layer, x = layer_of(spec, made), tokens(2, 5, 32)
    layer.bits = bits
    assert layer.bias is not None
    got = kernels.packed_linear(layer, x)
    wanted = output_by_hand(spec, made, layer.bias, x.reshape(10, 32), bits=bits).reshape(2, 5, 6)
    assert (got.double() - wanted).norm() <= 1e-5 * wanted.norm()
    assert torch.equal(kernels.packed_linear(layer, x), got)


@pytest.mark.parametrize("parts", [{}, {"permuted": True, "smoothed": True, "block": 16}, {"rank": 2}])
def test_the_kernels_are_given_the_shifted_input(parts: dict[str, Any], kernels: ModuleType) -> None:
    spec = spec_with(shift_groups=2, **parts)
    made = random_tensors(spec, 32, 6, 3)
    layer, x = layer_of(spec, made), tokens(5, 32)
    assert layer.bias is not None
    for step, group in ((0, 0), (2, 1)):
        layer.set_step(step, (3, 16, 8))
        assert kernels.takes(layer)
        got = kernels.packed_linear(layer, x) + layer.current_output
        wanted = output_by_hand(spec, made, layer.bias, x, bits=layer.bits, group=group)
        assert (got.double() - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize(
    ("block", "dtype", "rank", "rotated_by_kernel"),
    [
        (16, torch.bfloat16, 0, True),
        (16, torch.float16, 0, True),
        (16, torch.float32, 0, False),
        (8, torch.bfloat16, 0, False),
        (16, torch.bfloat16, 1, False),
    ],
)
def test_the_kernel_rotates_where_it_can(
    block: int, dtype: torch.dtype, rank: int, rotated_by_kernel: bool, kernels: ModuleType
) -> None:
    layer, x = random_layer(spec_with(block=block, rank=rank), 32, 6, 3).to(dtype), tokens(5, 32).to(dtype)
    layer.bits, layer.execution = 8, "reference"
    assert (kernels.packed_linear(layer, x).float() - layer(x).float()).norm() <= 0.02 * layer(x).float().norm()
    (call,) = kernels.calls
    assert (call.h is not None) == rotated_by_kernel
    if rotated_by_kernel:
        assert torch.equal(call.x, x) and call.h.shape == (block, block) and call.h.dtype == dtype


@pytest.mark.parametrize(
    ("parts", "roundings"),
    [({}, 1), ({"block": 16}, 1), ({"smoothed": True}, 2), ({"permuted": True}, 2), ({"rank": 1}, 2)],
)
def test_layers_of_one_input_round_it_once_unless_it_is_their_own(
    parts: dict[str, Any], roundings: int, kernels: ModuleType
) -> None:
    layers, shared, x = [random_layer(spec_with(**parts), 32, 6, seed) for seed in (1, 2)], SharedInput(), tokens(5, 32)
    for layer in layers:
        layer.bits, layer.shared = 4, shared
        kernels.packed_linear(layer, x)
    assert len(kernels.calls) == roundings
    layers[0].bits = 3
    kernels.packed_linear(layers[0], x)
    assert len(kernels.calls) == roundings + 1


def test_codes_of_the_kernel_are_not_taken_for_those_of_torch(kernels: ModuleType) -> None:
    layer, x = random_layer(spec_with(), 32, 6, 1), tokens(5, 32)
    layer.bits, layer.shared, layer.execution = 8, SharedInput(), "packed"
    first = layer(x)
    assert (kernels.packed_linear(layer, x) - first).norm() <= 1e-3 * first.norm()
    assert torch.equal(layer(x), first)


@pytest.mark.parametrize(
    ("parts", "bits", "rounds", "takes"),
    [
        ({}, 8, None, True),
        ({"rank": 1, "permuted": True, "smoothed": True, "block": 8}, 3, True, True),
        ({}, 16, None, False),
        ({}, 8, False, False),
        ({"group": 8}, 8, None, False),
        ({"codebook": True}, 8, None, False),
        ({"activation_codebook": True}, 8, None, False),
        ({"activation_group": 8}, 8, None, False),
        ({"time_groups": 2}, 8, None, False),
    ],
)
def test_the_kernels_take_layers_with_one_scale_a_token_and_an_output(
    parts: dict[str, Any], bits: int, rounds: bool | None, takes: bool, imported: ModuleType
) -> None:
    layer = random_layer(spec_with(**parts), 32, 6, 1)
    layer.bits, layer.rounds = bits, rounds
    assert bool(imported.takes(layer)) == takes


class OnGpu(Tensor):
    """Says that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(
    ("on_gpu", "takes", "calls"),
    [(True, True, 1), (False, True, 0), (True, False, 0)],
)
def test_packed_execution_uses_the_kernels_on_a_gpu_where_they_take_the_layer(
    on_gpu: bool, takes: bool, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, out = list[Tensor](), torch.ones(5, 6)
    x = tokens(5, 32).as_subclass(OnGpu) if on_gpu else tokens(5, 32)
    monkeypatch.setattr(QuantizedLinear, "gpu_kernels", None)
    use_gpu_kernels(SimpleNamespace(takes=lambda layer: takes, packed_linear=lambda layer, x: used.append(x) or out))
    layer = random_layer(spec_with(), 32, 6, 1)
    layer.bits = 4
    layer(x)
    assert not used
    layer.execution = "packed"
    assert (layer(x) is out) == bool(calls) and len(used) == calls


@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_the_instructions_cut_each_segments_codes_out_of_their_planes(bits: int, imported: ModuleType) -> None:
    """Executed one after another on four packed bytes at a time, which hold codes of four words."""
    codes = torch.randint(0, 2**bits, (1, 32), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    planes = pack(codes, bits).view(bits, 4).tolist()
    for segment, ptx in enumerate(imported._cuts(bits)):
        plane = segment * bits // 8
        words = [int.from_bytes(bytes(planes[p]), "little") for p in (plane, min(plane + 1, bits - 1))]
        assert ("$2" in ptx) == (segment * bits % 8 + bits > 8)
        wanted = [int(code) - (128 if bits == 8 else 0) for code in codes[0, 4 * segment : 4 * segment + 4]]
        result = executed(ptx, *words).to_bytes(4, "little")
        assert [byte - 256 if byte > 127 else byte for byte in result] == wanted


def executed(ptx: str, low: int, high: int) -> int:
    """The output register of a few 32-bit instructions."""
    registers, body = {"$1": low, "$2": high}, ptx[ptx.index("t;") + 2 :].rstrip("} ")
    for line in filter(None, (line.strip() for line in body.split(";"))):
        name, _, operands = line.partition(" ")
        target, *sources = (operand.strip() for operand in operands.split(","))
        a, b = (registers[source] if source in registers else int(source, 0) for source in sources)
        operations = {"shr.b32": a >> b, "shl.b32": a << b if b < 32 else 0, "and.b32": a & b, "or.b32": a | b}
        registers[target] = (operations | {"xor.b32": a ^ b})[name] & 0xFFFFFFFF
    return registers["$0"]


def test_sums_of_codes_are_those_of_the_kernels_codes(imported: ModuleType) -> None:
    for bits in WEIGHT_BITS:
        codes = torch.randint(0, 2**bits, (5, 33), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
        wanted = [sum(int(code) - (128 if bits == 8 else 0) for code in row) for row in codes]
        sums = imported.code_sums(pack(codes, bits), bits=bits, width=33)
        assert sums.dtype == torch.int32 and sums.tolist() == wanted
