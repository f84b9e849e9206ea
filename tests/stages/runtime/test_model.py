"""A model's quantized layers: placed where linears were, found by name, set to one execution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adatsq_pipe.stages.runtime import model as runtime_model
from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.runtime.model import (
    default_execution,
    execute,
    quantized_layers,
    replace_linears,
    without_adapters,
)
from tests.support.quantized_layers import spec_with


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU()), nn.Linear(4, 2))


def test_only_named_linears_are_replaced_and_keep_their_bias() -> None:
    net = network()
    before, bias = net[2], net[0].bias.detach().clone()
    layers = replace_linears(net, {"0": spec_with(), "1.0": spec_with(weight_bits=3, rank=1)}, steps=5)
    assert list(layers) == ["0", "1.0"] and net[0] is layers["0"] and net[1][0] is layers["1.0"] and net[2] is before
    first, second = layers["0"], layers["1.0"]
    assert (first.in_features, first.out_features, first.spec) == (8, 4, spec_with())
    assert first.bias is not None and torch.equal(first.bias, bias) and second.bias is None
    assert first.policy.shape == (5,) and second.down.shape == (1, 4)
    assert not any(parameter.requires_grad for layer in layers.values() for parameter in layer.parameters())


def test_replaced_layers_share_their_input_and_start_at_16_bits_in_simulate() -> None:
    layers = list(replace_linears(network(), {"0": spec_with(), "2": spec_with()}, steps=1).values())
    assert layers[0].shared is layers[1].shared and layers[0].shared is not None
    assert [(layer.bits, layer.execution) for layer in layers] == [(16, "simulate")] * 2


def test_layers_keep_the_device_and_dtype_of_the_linear() -> None:
    with torch.device("meta"):
        net = network().bfloat16()
    layer = replace_linears(net, {"0": spec_with()}, steps=1)["0"]
    assert layer.bias is not None and layer.bias.dtype == torch.bfloat16
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("name", ["3", "1.1", "1.weight", "1", "blocks.0"])
def test_a_name_that_is_no_linear_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"no linear layer '{name}'"):
        replace_linears(network(), {name: spec_with()}, steps=1)


def test_a_spec_that_does_not_fit_is_refused_with_the_name() -> None:
    with pytest.raises(ValueError, match="layer '0': group 3 does not divide the input width 8"):
        replace_linears(network(), {"0": spec_with(group=3)}, steps=1)


def test_quantized_layers_are_found_by_name() -> None:
    net = network()
    assert quantized_layers(net) == {}
    layers = replace_linears(net, {"1.0": spec_with(), "0": spec_with()}, steps=1)
    assert quantized_layers(net) == layers and list(quantized_layers(net)) == ["0", "1.0"]


def test_an_execution_is_set_everywhere_and_cached_weights_are_dropped() -> None:
    net = network()
    layers = replace_linears(net, {"0": spec_with(), "2": spec_with()}, steps=1)
    net(torch.ones(1, 8))
    assert all(layer._weight is not None for layer in layers.values())
    execute(net, "packed")
    assert [(layer.execution, layer._weight) for layer in layers.values()] == [("packed", None)] * 2
    with pytest.raises(ValueError, match="'fast'; choose of reference, simulate, packed"):
        execute(net, "fast")


@pytest.mark.parametrize(("limit", "execution"), [(40, "simulate"), (39, "packed")])
def test_a_model_above_the_limit_is_packed(limit: int, execution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quantized layers have 8 x 4 + 4 x 2 = 40 weights; the linear that stays does not count."""
    monkeypatch.setattr(runtime_model, "_SMALL", limit)
    net = network()
    replace_linears(net, {"0": spec_with(), "2": spec_with()}, steps=1)
    assert default_execution(net) == execution


def test_every_stored_tensor_is_a_buffer_of_the_state_and_step_buffers_are_not() -> None:
    spec = spec_with(time_groups=2, rank=1, smoothed=True, permuted=True)
    layer = QuantizedLinear(8, 4, spec=spec, steps=3, bias=True, dtype=torch.float32)
    wanted = {name: (tuple(shape), dtype) for name, (shape, dtype) in spec.tensors(8, 4, 3).items()}
    state = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in layer.state_dict().items()}
    assert state == wanted | {"bias": ((4,), torch.float32)}
    assert layer.step_buffers == ("qmax", "current_scale", "current_zero")


def test_a_state_without_its_adapters_has_the_names_from_before() -> None:
    one = torch.ones(1)
    plain = {"a.codes": one, "ab.weight": one, "b.0.weight": one, "b.0.bias": one}
    assert without_adapters(plain) == plain
    adapted = {
        "a.base_layer.codes": one, "a.lora_A.style.weight": one, "a.lora_B.style.weight": one, "ab.weight": one,
        "b.0.base_layer.weight": one, "b.0.base_layer.bias": one, "b.0.lora_A.style.weight": one,
    }  # fmt: skip
    with pytest.warns(UserWarning, match="saved without its LoRA"):
        assert without_adapters(adapted) == plain
