"""QuantizedLinear: its definition against slow plain maths, and every execution against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adatsq_pipe.stages.numerics.lloyd import gaussian_codebook
from adatsq_pipe.stages.numerics.transform import hadamard
from adatsq_pipe.stages.runtime.linear import EXECUTIONS, QuantizedLinear
from adatsq_pipe.stages.runtime.model import execute
from adatsq_pipe.stages.runtime.policy_hook import attach_policy_hook
from adatsq_pipe.stages.runtime.spec import WEIGHT_BITS, LayerSpec


def filled(spec: LayerSpec, width: int, out: int, seed: int, *, steps: int = 3) -> QuantizedLinear:
    """A layer of random parts."""
    random = torch.Generator().manual_seed(seed)
    layer = QuantizedLinear(width, out, spec=spec, steps=steps, bias=True, dtype=torch.float32)
    shape = spec.tensors(width, out, steps)
    made: dict[str, Tensor] = {
        "codes": torch.randint(0, 2**spec.weight_bits, (out, width), generator=random).to(torch.uint8),
        "scale": torch.rand(shape["scale"][0], generator=random) + 0.1,
        "zero": torch.randint(0, 2**spec.weight_bits, shape["scale"][0], generator=random).to(torch.uint8),
        "policy": torch.tensor([3, 16, 8][:steps], dtype=torch.uint8),
        "book": torch.randn(2**spec.weight_bits, generator=random).sort().values,
        "order": torch.randperm(width, generator=random).int(),
        "smooth": torch.rand(width, generator=random) + 0.5,
        "down": torch.randn(spec.rank, width, generator=random),
        "up": torch.randn(out, spec.rank, generator=random),
        "time_group": torch.tensor([0, 1, 1][:steps], dtype=torch.uint8),
        "step_scale": torch.linspace(0.2, 0.4, max(spec.time_groups, 1)),
        "step_zero": torch.arange(float(max(spec.time_groups, 1))) + 2,
    }
    layer.set_tensors({name: made[name] for name in shape})
    assert layer.bias is not None
    layer.bias.data.copy_(torch.randn(out, generator=random))
    return layer


def by_hand(layer: QuantizedLinear, codes: Tensor, x: Tensor, step: int) -> Tensor:
    """The layer's output by the book: float64, one token, one channel, one scale at a time."""
    spec, width = layer.spec, layer.in_features
    x = x.double()
    if spec.permuted:
        x = torch.stack([x[:, int(j)] for j in layer.order], 1)
    if spec.smoothed:
        x = x * layer.smooth.double()
    rotation = torch.block_diag(*[hadamard(spec.block, dtype=torch.float64)] * (width // spec.block))
    x = x @ rotation
    bits, rounded = int(layer.policy[step]), x.clone()
    place = int(layer.time_group[step]) if spec.time_groups else 0
    for n in range(len(x)) if bits < 16 else ():
        for first in range(0, width, spec.activation_group or width):
            part = x[n, first : first + (spec.activation_group or width)]
            if spec.regions:
                half, scale = 2 ** (bits - 1), layer.step_scale[place]
                above = (part / scale).round().clamp(0, half - 1) * scale
                below = (part / (0.17 / half)).round().clamp(-half, 0) * (0.17 / half)
                got = torch.where(part < 0, below, above)
            elif spec.time_groups:
                scale, zero = layer.step_scale[place], layer.step_zero[place]
                got = ((part / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero) * scale
            elif spec.activation_codebook:
                size, book = part.square().mean().sqrt(), gaussian_codebook(bits)
                got = torch.stack([book[(value / size - book).abs().argmin()] for value in part]) * size
            elif spec.symmetric_activations:
                scale = part.abs().max() / (2 ** (bits - 1) - 1)
                got = (part / scale).round() * scale if scale > 0 else part
            else:
                scale = (part.max().clamp(min=0) - part.min().clamp(max=0)) / (2**bits - 1)
                low = (part.min().clamp(max=0) / scale).round() if scale > 0 else 0
                got = (part / scale).round().clamp(max=low + 2**bits - 1) * scale if scale > 0 else part
            rounded[n, first : first + len(part)] = got
    weight = torch.empty(layer.out_features, width, dtype=torch.float64)
    for o in range(layer.out_features):
        for i in range(width):
            group = i // (spec.group or width)
            value = layer.book[codes[o, i].int()] if spec.codebook else float(codes[o, i]) - float(layer.zero[o, group])
            weight[o, i] = float(value) * float(layer.scale[o, group])
    out = rounded @ weight.T
    if spec.rank:
        out = out + x @ layer.down.double().T @ layer.up.double().T
    assert layer.bias is not None
    return out + layer.bias.double()


PARTS: list[dict[str, Any]] = [
    {},
    {"group": 8},
    {"block": 8},
    {"symmetric_activations": True},
    {"activation_group": 8},
    {"permuted": True, "block": 8},
    {"smoothed": True},
    {"rank": 2, "smoothed": True},
    {"codebook": True, "permuted": True, "block": 16},
    {"time_groups": 2},
    {"time_groups": 2, "regions": True, "smoothed": True},
    {"activation_codebook": True, "codebook": True},
    {"group": 16, "block": 16, "smoothed": True, "rank": 1, "permuted": True, "activation_group": 8},
]


def spec_with(**parts: Any) -> LayerSpec:
    return LayerSpec(**({"weight_bits": 4, "group": 0, "block": 1, "symmetric_activations": False} | parts))


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "+".join(parts) or "plain")
def test_the_reference_is_plain_maths(parts: dict[str, Any], step: int) -> None:
    spec = spec_with(weight_bits=3, **parts)
    layer, random = filled(spec, 32, 6, 5), torch.Generator().manual_seed(1)
    codes = torch.randint(0, 8, (6, 32), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    layer.execution = "reference"
    layer.set_step([step], layer.policy.tolist())
    x = torch.randn(5, 32, generator=random)
    assert torch.allclose(layer(x).double(), by_hand(layer, codes, x, step), rtol=1e-4, atol=1e-4)


@st.composite
def cases(draw: st.DrawFn) -> tuple[LayerSpec, int, int, Tensor, int]:
    """Specs over all parts, odd widths, and inputs with zero rows, constant rows, huge outliers, or no rows."""
    block = draw(st.sampled_from([1, 1, 2, 8]))
    width = block * draw(st.integers(1, 9))
    divisors = [0, *(d for d in range(1, width + 1) if width % d == 0)]
    out, kind = draw(st.integers(1, 9)), draw(st.sampled_from(["token", "group", "static", "regions", "codebook"]))
    spec = LayerSpec(
        weight_bits=draw(st.sampled_from(WEIGHT_BITS)),
        group=draw(st.sampled_from(divisors)),
        block=block,
        symmetric_activations=draw(st.booleans()),
        activation_group=draw(st.sampled_from(divisors)) if kind == "group" else 0,
        activation_codebook=kind == "codebook",
        permuted=draw(st.booleans()),
        smoothed=draw(st.booleans()),
        rank=draw(st.integers(0, min(width, out, 3))),
        codebook=draw(st.booleans()),
        time_groups=2 if kind in ("static", "regions") else 0,
        regions=kind == "regions",
    )
    seed = draw(st.integers(0, 10))
    x = torch.randn(draw(st.integers(0, 6)), width, generator=torch.Generator().manual_seed(seed))
    for special, row in zip(draw(st.permutations(["zero", "constant", "huge", "as it is"])), x, strict=False):
        if special in ("zero", "constant"):
            row.fill_(0.0 if special == "zero" else -1.7)
        elif special == "huge":
            row[0] = 1e4
    return spec, width, out, x, draw(st.sampled_from([0, 1, 2]))


@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_every_execution_agrees_with_the_reference(case: tuple[LayerSpec, int, int, Tensor, int]) -> None:
    spec, width, out, x, step = case
    layer, found = filled(spec, width, out, 7), {}
    layer.set_step([step], layer.policy.tolist())
    for execution in EXECUTIONS:
        layer.execution = execution
        found[execution] = layer(x)
    wanted = found["reference"]
    for execution in EXECUTIONS[1:]:
        assert found[execution].shape == (len(x), out)
        assert (found[execution] - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6


@pytest.mark.parametrize("execution", ["simulate", "packed"])
@pytest.mark.parametrize("bits", [3, 8])
def test_large_inputs_go_through_in_chunks_to_the_same_end(bits: int, execution: str) -> None:
    layer = filled(spec_with(block=64, rank=2), 64, 16, 3)
    layer.execution, layer.bits = execution, bits
    x = torch.randn(3, 4000, 64, generator=torch.Generator().manual_seed(2))
    whole, few = layer(x), torch.cat([layer(part) for part in x.split(500, 1)], 1)
    assert torch.allclose(whole, few, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "+".join(parts) or "plain")
def test_packed_in_float32_gives_the_bits_of_simulate(parts: dict[str, Any]) -> None:
    layer = filled(spec_with(**parts), 64, 24, seed=5)
    x = torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(1))
    layer.set_step([2], layer.policy.tolist())
    got = {}
    for execution in ("simulate", "packed"):
        execute(layer, execution)
        got[execution] = layer(x)
    assert torch.equal(got["packed"], got["simulate"])


def test_bfloat16_rounds_no_more_than_a_plain_linear_would() -> None:
    for bits in WEIGHT_BITS:
        layer = filled(spec_with(weight_bits=bits), 256, 32, bits)
        layer.bits = bits
        layer.bfloat16()
        x = torch.randn(64, 256, generator=torch.Generator().manual_seed(bits)).bfloat16()
        layer.execution = "reference"
        wanted = layer(x).float()
        for execution in EXECUTIONS[1:]:
            layer.execution = execution
            layer.drop_cache()
            assert (layer(x).float() - wanted).norm() <= 1e-2 * wanted.norm()


def test_one_graph_serves_every_step() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = filled(spec_with(block=8), 32, 32, 1), filled(spec_with(rank=2), 32, 32, 2)

        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            out: Tensor = self.b(torch.relu(self.a(x)))
            return out

    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    for execution in ("simulate", "packed"):
        torch._dynamo.reset()
        model, times = Block(), [torch.tensor([t]) for t in (1.0, 0.5, 0.0)]
        attach_policy_hook(model, [1.0, 0.5, 0.0])
        execute(model, execution)
        with torch.no_grad():
            eager = [model(x, t) for t in times]
            compiled = torch.compile(model, backend="eager")
            graphs = torch._dynamo.utils.counters["stats"]
            got = [compiled(x, times[0])]
            after_one = graphs["unique_graphs"]
            got += [compiled(x, t) for t in times[1:]]
        assert after_one and graphs["unique_graphs"] == after_one
        for one, other in zip(eager, got, strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"weight_bits": 7}, "7 bits cannot be packed"),
        ({"block": 3}, "no power of two"),
        ({"group": 5}, "does not divide"),
        ({"rank": 9}, "rank 9 is above"),
        ({"activation_group": 8, "time_groups": 2}, "one scale for all"),
        ({"regions": True}, "needs time_groups"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec_with(**parts).tensors(32, 8, 1)


def test_dequantizing_gives_a_plain_linear_of_the_same_weight() -> None:
    for parts in PARTS:
        layer = filled(spec_with(**parts), 32, 6, 4)
        x = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
        assert torch.allclose(layer.dequantized(torch.float32)(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bits", "least"), [(3, 4.9), (4, 3.8)])
def test_it_is_as_small_as_promised(bits: int, least: float) -> None:
    with torch.device("meta"):
        layer = QuantizedLinear(
            3072, 3072, spec=spec_with(weight_bits=bits, block=128), steps=50, bias=False, dtype=torch.bfloat16
        )
    assert 2 * 3072 * 3072 / sum(tensor.nbytes for tensor in layer.state_dict().values()) >= least
