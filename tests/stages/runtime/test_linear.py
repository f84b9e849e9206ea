"""QuantizedLinear: its definition against slow plain maths, and every execution against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adatsq_pipe.stages.runtime.linear import EXECUTIONS, QuantizedLinear
from adatsq_pipe.stages.runtime.model import execute
from adatsq_pipe.stages.runtime.policy_hook import attach_policy_hook
from adatsq_pipe.stages.runtime.shared import SharedInput
from adatsq_pipe.stages.runtime.spec import WEIGHT_BITS, LayerSpec
from tests.support.quantized_layers import (
    PARTS,
    POLICY,
    layer_of,
    output_by_hand,
    random_layer,
    random_tensors,
    spec_with,
    transformed_by_hand,
    weight_by_hand,
)

GROUP = (0, 1, 1)
"""Group of timesteps that each step of `random_tensors` belongs to."""
by_parts = pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "+".join(parts) or "plain")


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_row(x: list[float], **more: Any) -> QuantizedLinear:
    """A layer of one output that sums its inputs: codes 3, zero point 1, scale 0.5, so every weight is 1."""
    layer = QuantizedLinear(len(x), 1, spec=spec_with(weight_bits=2, **more), steps=1, bias=False, dtype=torch.float32)
    ones = torch.ones(1, len(x), dtype=torch.uint8)
    layer.set_tensors({"codes": 3 * ones, "zero": ones[:, :1], "scale": torch.tensor([[0.5]])})
    return layer


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    ("symmetric", "bits", "rounded"),
    [
        # Asymmetric, 2 bits: three steps over [-1, 5] are 2 each.
        (False, 2, [0.0, 2.0, 4.0]),
        # Symmetric, 2 bits: one step a side, 5.
        (True, 2, [0.0, 0.0, 5.0]),
        # Symmetric, 3 bits: three steps a side, 5 / 3 each.
        (True, 3, [-5 / 3, 5 / 3, 5.0]),
        (False, 16, [-1.0, 2.2, 5.0]),
    ],
)
def test_a_token_is_rounded_to_its_own_grid(symmetric: bool, bits: int, rounded: list[float], execution: str) -> None:
    """-1 / 2 is a tie, which goes to the even 0; the ceiling of the asymmetric grid, 0 + 3 steps, is not reached."""
    x = [-1.0, 2.2, 5.0]
    layer = one_row(x, symmetric_activations=symmetric)
    layer.bits, layer.execution = bits, execution
    assert float(layer(torch.tensor(x))) == pytest.approx(sum(rounded), rel=1e-6)


@by_parts
@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_reference_is_plain_maths(parts: dict[str, Any], step: int) -> None:
    spec = spec_with(**({"weight_bits": 3} | parts))
    made = random_tensors(spec, 32, 6, 5)
    layer, x = layer_of(spec, made), tokens(5, 32)
    layer.execution = "reference"
    layer.set_step(step, POLICY)
    assert layer.bias is not None
    wanted = output_by_hand(spec, made, layer.bias, x, bits=POLICY[step], group=GROUP[step])
    assert torch.allclose(layer(x).double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight_bits", WEIGHT_BITS)
@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("group", [0, 16])
def test_the_reference_is_plain_maths_at_every_bit_width(weight_bits: int, bits: int, group: int) -> None:
    spec = spec_with(weight_bits=weight_bits, group=group, block=16)
    made = random_tensors(spec, 48, 5, weight_bits)
    layer, x = layer_of(spec, made), tokens(4, 48)
    layer.bits, layer.execution = bits, "reference"
    assert layer.bias is not None
    wanted = output_by_hand(spec, made, layer.bias, x, bits=bits)
    assert torch.allclose(layer(x).double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@by_parts
@pytest.mark.parametrize("execution", ["simulate", "packed"])
def test_bfloat16_is_the_same_maths_to_its_precision(parts: dict[str, Any], execution: str) -> None:
    """At 8 bits, where the last bit of a bfloat16 that flips a code moves little."""
    spec = spec_with(**parts)
    made = random_tensors(spec, 32, 6, 5)
    layer, x = layer_of(spec, made), tokens(7, 32).bfloat16()
    assert layer.bias is not None
    layer.set_step(2, POLICY)
    wanted = output_by_hand(spec, made, layer.bias.bfloat16(), x, bits=8, group=1)
    layer.bias.data = layer.bias.data.bfloat16()
    layer.execution = execution
    got = layer(x)
    assert got.dtype == torch.bfloat16
    assert (got.double() - wanted).norm() <= 0.012 * wanted.norm()


@pytest.mark.parametrize("parts", [{}, {"symmetric_activations": True}, {"time_groups": 2}])
def test_packed_in_bfloat16_sums_integers_exactly_and_scales_last(parts: dict[str, Any]) -> None:
    """Integer codes times integer weights; then one product with each scale, and the bias, in bfloat16."""
    spec = spec_with(**parts)
    made = random_tensors(spec, 64, 8, 3)
    layer, x = layer_of(spec, made), tokens(9, 64).bfloat16()
    assert layer.bias is not None
    layer.bias.data = layer.bias.data.bfloat16()
    layer.set_step(2, POLICY)
    layer.execution = "packed"
    got = layer(x)
    for n, token in enumerate(x.float()):
        if spec.time_groups:
            scale, zero = made["step_scale"][1], made["step_zero"][1]
            codes = torch.clamp(torch.round(token / scale), -zero, 255 - zero)
        elif spec.symmetric_activations:
            scale = token.abs().max() / 127
            codes = torch.round(token / scale)
        else:
            scale = (token.max() - token.min()) / 255
            codes = torch.clamp(torch.round(token / scale), max=torch.round(token.min() / scale) + 255)
        sums = (made["codes"].double() - made["zero"].double()) @ codes.double()
        wanted = sums.bfloat16() * made["scale"].flatten() * scale.bfloat16() + layer.bias
        assert torch.equal(got[n], wanted)


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
    layer, found = random_layer(spec, width, out, 7), {}
    layer.set_step(step, POLICY)
    for execution in EXECUTIONS:
        layer.execution = execution
        found[execution] = layer(x)
    wanted = found["reference"]
    for execution in EXECUTIONS[1:]:
        assert found[execution].shape == (len(x), out)
        assert (found[execution] - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6


@by_parts
def test_packed_in_float32_gives_the_bits_of_simulate(parts: dict[str, Any]) -> None:
    layer, x, got = random_layer(spec_with(**parts), 64, 24, seed=5), tokens(3, 7, 64), {}
    layer.set_step(2, POLICY)
    for execution in ("simulate", "packed"):
        execute(layer, execution)
        got[execution] = layer(x)
    assert torch.equal(got["packed"], got["simulate"])


def test_packed_computes_rows_in_parts_to_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for parts, dtype in (({}, torch.bfloat16), ({"group": 8}, torch.float32)):
        layer, x = random_layer(spec_with(**parts), 64, 21, seed=5), tokens(7, 64).to(dtype)
        layer.bits, layer.execution = 4, "packed"
        assert layer.bias is not None
        layer.bias.data = layer.bias.data.to(dtype)
        whole = layer(x)
        with monkeypatch.context() as patch:
            patch.setattr("adatsq_pipe.stages.runtime.linear._UNPACKED_AT_ONCE", 64 * 8)
            assert torch.allclose(layer(x), whole, rtol=1e-5, atol=1e-4)


def test_a_step_takes_its_bits_and_the_scale_of_its_group() -> None:
    layer = random_layer(spec_with(time_groups=2), 16, 4, 1)
    for step, (bits, group) in enumerate(zip(POLICY, GROUP, strict=True)):
        layer.set_step(step, POLICY)
        assert (layer.bits, float(layer.qmax)) == (bits, 2**bits - 1)
        assert layer.current_scale == layer.step_scale[group] and layer.current_zero == layer.step_zero[group]


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("parts", [{}, {"rank": 2, "group": 8, "activation_group": 8}])
def test_a_step_clips_tokens_by_the_ratio_of_its_bin(parts: dict[str, Any], execution: str) -> None:
    """A layer with ratios of 1 is the layer without them; with smaller ones it is that layer fed clipped groups."""
    spec = spec_with(clip_bins=2, **parts)
    made = random_tensors(spec, 16, 6, 2) | {"clip_bin": torch.tensor(GROUP), "step_clip": torch.tensor([1.0, 0.6])}
    plain = layer_of(spec_with(**parts), {name: t for name, t in made.items() if "clip" not in name})
    layer, x = layer_of(spec, made), tokens(5, 16)
    layer.execution = plain.execution = execution
    groups = x.unflatten(1, (-1, spec.activation_group or 16))
    ends = [groups.amin(2, keepdim=True).clamp(max=0) * 0.6, groups.amax(2, keepdim=True).clamp(min=0) * 0.6]
    cut = torch.minimum(torch.maximum(groups, ends[0]), ends[1]).flatten(1)
    branch = plain.low_rank_branch(x - cut) if spec.rank else 0
    for step, fed in ((0, x), (1, cut)):
        for each in (layer, plain):
            each.set_step(step, (4, 4, 4))
        wanted = plain(fed) + (branch if step else 0)
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)
    assert layer.current_clip == torch.tensor(0.6) and layer.has_own_input


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("parts", [{}, {"smoothed": True, "permuted": True, "block": 8}, {"rank": 2}])
def test_a_shift_leaves_the_output_of_whole_numbers_as_it_is_at_every_step(
    parts: dict[str, Any], execution: str
) -> None:
    """The layer's weight is exactly what its codes and its branch stand for, and its input is not rounded: x W^T + b,
    whatever the group of the step subtracts."""
    made = random_tensors(spec_with(shift_groups=3, **parts), 32, 6, 4)
    made["shift_group"] = torch.tensor([2, 0, 1], dtype=torch.uint8)
    whole = layer_of(spec_with(**parts), {name: t for name, t in made.items() if "shift" not in name})
    w = whole.dequantized(torch.float32).weight
    made["shift_output"] = (made["shift"].double() @ w.double().T).float()
    layer, x = layer_of(spec_with(shift_groups=3, **parts), made), tokens(5, 32)
    layer.execution = whole.execution = execution
    assert layer.bias is not None
    for step in range(3):
        layer.set_step(step, (16, 16, 16))
        wanted = x.double() @ w.double().T + layer.bias.double()
        torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-4, atol=1e-4)
        less = made["shift"][int(made["shift_group"][step])].float().expand_as(x)
        torch.testing.assert_close(layer.transform(x), whole.transform(x - less))
    assert layer.has_own_input


@pytest.mark.parametrize("weight_bits", WEIGHT_BITS)
@pytest.mark.parametrize("parts", [{}, {"group": 16}, {"codebook": True}])
def test_the_weight_is_every_code_less_its_zero_point_times_its_scale(parts: dict[str, Any], weight_bits: int) -> None:
    spec = spec_with(weight_bits=weight_bits, **parts)
    made = random_tensors(spec, 48, 9, weight_bits)
    assert torch.equal(layer_of(spec, made).weight_as(torch.float32), weight_by_hand(spec, made).float())


def test_the_weight_is_computed_again_for_another_dtype_and_for_other_codes() -> None:
    spec = spec_with(group=8)
    first, second = (random_tensors(spec, 16, 4, seed) for seed in (1, 2))
    layer = layer_of(spec, first)
    assert torch.equal(layer.weight_as(torch.float32), weight_by_hand(spec, first).float())
    assert torch.equal(layer.weight_as(torch.bfloat16), weight_by_hand(spec, first).bfloat16())
    layer.set_tensors(second)
    assert torch.equal(layer.weight_as(torch.bfloat16), weight_by_hand(spec, second).bfloat16())


def test_the_rotation_has_the_dtype_of_the_input() -> None:
    layer = random_layer(spec_with(block=16), 32, 4, 1)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        assert layer.transform(tokens(3, 32).to(dtype)).dtype == dtype


def sharing(first: dict[str, Any], second: dict[str, Any], *bits: int) -> tuple[int, bool]:
    """How often two layers of one input transform it, and whether both gave what they give alone."""
    layers = [random_layer(spec_with(**parts), 32, 6, seed) for seed, parts in enumerate((first, second))]
    x, shared, transforms = tokens(3, 32), SharedInput(), list[int]()
    for layer, b in zip(layers, bits, strict=True):
        layer.bits = b
        if layer.spec.time_groups:
            layer.current_scale.copy_(layer.step_scale[0])
    alone = [layer(x.clone()) for layer in layers]
    for layer in layers:
        layer.shared = shared
        transform = layer.transform
        layer.transform = lambda x, of=transform: transforms.append(1) or of(x)  # type: ignore[method-assign, misc]
    same = all(torch.equal(layer(x), wanted) for layer, wanted in zip(layers, alone, strict=True))
    return len(transforms), same


@pytest.mark.parametrize("parts", [{}, {"block": 8}, {"symmetric_activations": True}, {"activation_group": 8}])
def test_layers_that_round_one_input_alike_round_it_once(parts: dict[str, Any]) -> None:
    assert sharing(parts, {**parts, "group": 16, "weight_bits": 3}, 4, 4) == (1, True)


@pytest.mark.parametrize(
    ("first", "second", "bits"),
    [
        ({}, {}, (4, 3)),
        ({"block": 8}, {"block": 16}, (4, 4)),
        ({}, {"symmetric_activations": True}, (4, 4)),
        ({"activation_group": 8}, {"activation_group": 16}, (4, 4)),
        ({"smoothed": True}, {"smoothed": True}, (4, 4)),
        ({"permuted": True}, {"permuted": True}, (4, 4)),
        ({"rank": 1}, {"rank": 1}, (4, 4)),
        ({"time_groups": 2}, {"time_groups": 2}, (4, 4)),
        ({"activation_codebook": True}, {}, (4, 4)),
    ],
)
def test_layers_that_round_one_input_in_other_ways_do_not_share_it(
    first: dict[str, Any], second: dict[str, Any], bits: tuple[int, int]
) -> None:
    assert sharing(first, second, *bits) == (2, True)


def test_an_inference_tensor_which_counts_no_versions_is_not_shared() -> None:
    layer = random_layer(spec_with(), 32, 6, 1)
    layer.shared, layer.bits = SharedInput(), 4
    with torch.inference_mode():
        x = tokens(3, 32)
        before = layer(x).clone()
        x.mul_(-2)
        assert torch.equal(layer(x), layer(x.clone())) and not torch.allclose(layer(x), before)


@pytest.mark.parametrize("order", [("simulate", "packed"), ("packed", "simulate")])
def test_values_and_codes_of_one_input_are_not_mixed_up(order: tuple[str, str]) -> None:
    """`simulate` multiplies values, `packed` in bfloat16 codes; a model may be half the one, half the other."""
    layer, x = random_layer(spec_with(), 32, 6, 1).bfloat16(), tokens(3, 32).bfloat16()
    layer.shared, layer.bits, layer.execution = SharedInput(), 8, "reference"
    wanted = layer(x).float()
    for layer.execution in order:
        assert (layer(x).float() - wanted).norm() <= 0.02 * wanted.norm()


@by_parts
def test_dequantizing_gives_a_plain_linear_for_the_untransformed_input(parts: dict[str, Any]) -> None:
    spec = spec_with(**parts)
    made = random_tensors(spec, 32, 6, 4)
    layer, x = layer_of(spec, made), tokens(5, 32)
    assert layer.bias is not None
    plain, wanted = layer.dequantized(torch.float32), output_by_hand(spec, made, layer.bias, x, bits=16)
    if spec.shift_groups:  # the mean of the steps 0, 1 and 2 in groups 0, 1 and 1
        wanted = (wanted + 2 * output_by_hand(spec, made, layer.bias, x, bits=16, group=1)) / 3
    assert type(plain) is nn.Linear and torch.allclose(plain(x).double(), wanted, rtol=1e-4, atol=1e-4)
    assert layer.dequantized(torch.bfloat16).weight.dtype == torch.bfloat16


@by_parts
def test_transform_brings_an_input_into_the_basis_in_which_it_is_rounded(parts: dict[str, Any]) -> None:
    spec = spec_with(**parts)
    made = random_tensors(spec, 32, 6, 4)
    layer, x = layer_of(spec, made), tokens(5, 32)
    for step, group in enumerate(GROUP):
        layer.set_step(step, POLICY)
        wanted = transformed_by_hand(spec, made, x, group=group)
        assert torch.allclose(layer.transform(x).double(), wanted, atol=1e-5)


def test_one_graph_serves_every_step() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = random_layer(spec_with(block=8), 32, 32, 1), random_layer(spec_with(rank=2), 32, 32, 2)

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
        assert torch.allclose(eager[1], got[1], rtol=1e-6, atol=1e-5), "at 16 bits nothing is rounded"


@pytest.mark.parametrize(("bits", "least"), [(3, 4.9), (4, 3.8)])
def test_it_is_as_small_as_promised(bits: int, least: float) -> None:
    with torch.device("meta"):
        layer = QuantizedLinear(
            3072, 3072, spec=spec_with(weight_bits=bits, block=128), steps=50, bias=False, dtype=torch.bfloat16
        )
    assert 2 * 3072 * 3072 / sum(tensor.nbytes for tensor in layer.state_dict().values()) >= least
