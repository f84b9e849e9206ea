"""The diffusers quantizer: its configuration, what it loads and refuses, and the dtypes that it saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.quantizers import auto
from safetensors.torch import save_file
from torch import Tensor, nn

from adatsq_pipe.stages.runtime import stored as module
from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.runtime.policy_hook import PolicyHook
from adatsq_pipe.stages.runtime.quantizer import AdatsqConfig, AdatsqQuantizer, register
from adatsq_pipe.stages.runtime.spec import LayerSpec
from tests.support.quantized_layers import random_layer, random_tensors, spec_with, weight_by_hand

TIMESTEPS = [1.0, 0.6, 0.2]
SPEC = spec_with(group=8)


class Model(nn.Module):
    """One linear that is quantized, one that is not; calls have a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.quantized: nn.Module = nn.Linear(16, 4)
        self.plain = nn.Linear(4, 2)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        out: Tensor = self.plain(self.quantized(x))
        return out


def config(**more: Any) -> AdatsqConfig:
    return AdatsqConfig(**({"layers": {"quantized": SPEC.plain()}, "timesteps": TIMESTEPS} | more))


def placed(spec: LayerSpec = SPEC) -> tuple[AdatsqQuantizer, Model, dict[str, Tensor]]:
    """A quantizer whose layers are in a model, and what the model's file holds."""
    quantizer, model = AdatsqQuantizer(config(layers={"quantized": spec.plain()})), Model()
    quantizer._process_model_before_weight_loading(model)
    stored = random_layer(spec, 16, 4, 1).state_dict()
    return quantizer, model, {f"quantized.{name}": tensor for name, tensor in stored.items()}


def load(quantizer: AdatsqQuantizer, model: Model, file: dict[str, Tensor], cast: torch.dtype = torch.float32) -> None:
    """As diffusers does it: it casts floating-point tensors, and passes the file's along."""
    for name, tensor in file.items():
        given = tensor.to(cast) if tensor.is_floating_point() else tensor
        if quantizer.check_if_quantized_param(model, given, name, file):
            quantizer.create_quantized_param(model, given, name, "cpu", file)


def test_a_config_survives_json() -> None:
    for more in ({}, {"timestep": "guidance"}, {"runtime": {"engine": [1, 2]}}):
        plain = config(**more).to_dict()
        assert plain.items() >= more.items()
        assert AdatsqConfig(**json.loads(json.dumps(plain))).to_dict() == plain == config(**more).to_diff_dict()
    assert config().to_dict() == {
        "quant_method": "adatsq",
        "format": 2,
        "layers": {"quantized": {"weight_bits": 4, "group": 8, "block": 1, "symmetric_activations": False}},
        "timesteps": TIMESTEPS,
    }
    assert config().specs == {"quantized": SPEC}


@pytest.mark.parametrize(
    ("more", "words"), [({"format": 1}, "written in format 1, this version reads 2"), ({"colour": 1}, r"\['colour'\]")]
)
def test_a_config_of_another_version_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**more)


@pytest.mark.parametrize("fields", [{"colour": 1}, {"weight_bits": 7}, {"regions": True}])
def test_a_layer_with_unknown_or_contradictory_parts_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"of layer 'quantized'.*update adatsq-pipe"):
        _ = config(layers={"quantized": SPEC.plain() | fields}).specs


def test_only_the_tensors_of_quantized_layers_are_taken() -> None:
    quantizer, model, file = placed()
    names = [*file, "plain.weight", "quantized.weight"]
    taken = {name for name in names if quantizer.check_if_quantized_param(model, torch.ones(1), name, {})}
    assert taken == {f"quantized.{part}" for part in ("codes", "scale", "zero", "policy")}


@pytest.mark.parametrize("cast", [torch.float32, torch.float16])
def test_tensors_are_loaded_as_stored_whatever_they_were_cast_to(cast: torch.dtype) -> None:
    quantizer, model, file = placed()
    load(quantizer, model, file, cast)
    layer = model.quantized
    assert isinstance(layer, QuantizedLinear)
    wanted = weight_by_hand(SPEC, random_tensors(SPEC, 16, 4, 1))
    assert torch.equal(layer.weight_as(torch.float32).double(), wanted)
    assert layer.scale.dtype == torch.bfloat16 and layer.policy.tolist() == [3, 16, 8]


@pytest.mark.parametrize(
    ("part", "damaged", "words"),
    [
        ("scale", torch.ones(4, 2), "quantized.scale is torch.float32, expected torch.bfloat16"),
        ("codes", torch.ones(4, 8, dtype=torch.int8), "is torch.int8, expected torch.uint8"),
        ("scale", torch.ones(4, 1, dtype=torch.bfloat16), r"has shape \[4, 1\], expected \[4, 2\]"),
        ("policy", torch.ones(2, dtype=torch.uint8), r"quantized.policy has shape \[2\], expected \[3\]"),
    ],
)
def test_a_tensor_of_another_dtype_or_shape_is_refused(part: str, damaged: Tensor, words: str) -> None:
    quantizer, model, file = placed()
    with pytest.raises(ValueError, match=words):
        load(quantizer, model, file | {f"quantized.{part}": damaged})


@pytest.mark.parametrize(
    ("missing", "extra", "words"),
    [
        ([], [], ""),
        (["quantized.zero"], [], "^the weights lack 1 tensors, first 'quantized.zero'; copy"),
        ([], ["a.b", "a.c"], "^the weights hold 2 that the model does not know, first 'a.b'; copy"),
        (["plain.bias"], ["a.b"], "lack 1 tensors, first 'plain.bias' and hold 1 that"),
        ([], ["ignored.b"], ""),
    ],
)
def test_files_that_hold_other_tensors_than_the_model_are_refused(
    missing: list[str], extra: list[str], words: str
) -> None:
    quantizer, model, _ = placed()
    model._keys_to_ignore_on_load_unexpected = [r"^ignored\."]  # type: ignore[assignment]
    names = [name for name in model.state_dict() if name not in missing] + extra
    assert quantizer.maybe_update_loaded_keys(names, []) == names
    if words:
        with pytest.raises(ValueError, match=words):
            quantizer.update_missing_keys(model, [], "")
    else:
        assert quantizer.update_missing_keys(model, ["kept"], "") == ["kept"]


def test_tensors_are_saved_in_the_dtype_of_their_file_unless_that_would_change_them(tmp_path: Path) -> None:
    quantizer, fits, changed = AdatsqQuantizer(config()), torch.tensor([1.0, 0.5]), torch.tensor([1.0, 1 + 2**-12])
    stored = {name: torch.ones(2, dtype=torch.bfloat16) for name in ("fits", "changed")}
    save_file(stored | {"half": torch.ones(2).half(), "codes": torch.ones(2, dtype=torch.uint8)}, tmp_path / "file")
    quantizer.maybe_update_loaded_keys([], [str(tmp_path / "file")])
    state = {"fits": fits, "changed": changed, "half": fits.bfloat16(), "codes": torch.ones(2, dtype=torch.int64)}
    saved, _ = quantizer.get_state_dict_and_metadata(state | {"new": fits})
    assert {name: tensor.dtype for name, tensor in saved.items()} == {
        "fits": torch.bfloat16,
        "changed": torch.float32,
        "half": torch.float16,
        "codes": torch.int64,
        "new": torch.float32,
    }
    assert torch.equal(saved["changed"], changed) and torch.equal(saved["fits"].float(), fits)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64, torch.float16])
def test_a_model_stored_in_8_bits_is_saved_in_8_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    quantizer, values = AdatsqQuantizer(config()), torch.tensor([1.0, -0.5, 0.0])
    save_file({"plain": values.to(dtype), "changed": values.to(dtype)}, tmp_path / "file")
    quantizer.maybe_update_loaded_keys([], [str(tmp_path / "file")])
    for loaded in (torch.float32, torch.bfloat16):
        changed = torch.tensor([1.0, 1 + 2**-7, 3e38]).to(loaded)
        saved, _ = quantizer.get_state_dict_and_metadata({"plain": values.to(loaded), "changed": changed})
        assert saved["plain"].dtype == dtype and torch.equal(saved["plain"].float(), values)
        assert torch.equal(saved["changed"].double(), changed.double()), "what no longer fits keeps its values"


def test_tensors_of_a_dtype_that_torch_does_not_know_are_saved_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = AdatsqQuantizer(config())
    save_file({"plain": torch.ones(2).to(torch.float8_e5m2)}, tmp_path / "file")
    monkeypatch.delitem(module._DTYPES, "F8_E5M2")
    quantizer.maybe_update_loaded_keys([], [str(tmp_path / "file")])
    saved, _ = quantizer.get_state_dict_and_metadata({"plain": torch.ones(2).bfloat16()})
    assert saved["plain"].dtype == torch.bfloat16


def test_a_loaded_model_follows_its_policy_and_dequantizes_to_plain_linears() -> None:
    quantizer, model, file = placed()
    load(quantizer, model, file)
    assert quantizer._process_model_after_weight_loading(model) is model
    layer = model.quantized
    assert isinstance(layer, QuantizedLinear) and layer.execution == "simulate"
    assert layer.bias is not None
    for timestep, bits in zip(TIMESTEPS, (3, 16, 8), strict=True):
        model(torch.ones(1, 16), torch.tensor(timestep))
        assert layer.bits == bits
    bias, weight = layer.bias, layer.weight_as(torch.float32)
    quantizer._dequantize(model)
    plain = model.quantized
    assert type(plain) is nn.Linear and torch.equal(plain.weight, weight) and plain.bias is bias
    assert not any(isinstance(hook, PolicyHook) for hook in model._forward_pre_hooks.values())


def test_registering_leaves_what_another_registered_under_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping: dict[str, type] = {}
    monkeypatch.setattr(auto, "AUTO_QUANTIZER_MAPPING", mapping)
    register()
    assert mapping == {"adatsq": AdatsqQuantizer}
    mapping["adatsq"] = int
    register()
    assert mapping == {"adatsq": int}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"layers": {}}, "names no layers"),
        ({"layers": ["quantized"]}, "names no layers"),
        ({"layers": {"quantized": 4}}, "names no layers"),
        ({"timesteps": []}, r"the timesteps \[\], no list of numbers: no policy"),
        ({"timesteps": None}, "no policy"),
        ({"timesteps": 3}, "the timesteps 3, no list of numbers"),
        ({"timesteps": [1.0, "0.5"]}, "no list of numbers"),
        ({"timesteps": [1.0, float("nan")]}, "no list of numbers"),
        ({"timestep": 5}, "the timestep 5, not the name of an argument"),
    ],
)
def test_a_config_that_no_model_can_follow_is_refused_by_what_it_lacks(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**more)


def test_a_folder_whose_config_holds_the_method_alone_is_refused_when_it_loads() -> None:
    with pytest.raises(ValueError, match="quantization_config names no layers"):
        AdatsqQuantizer(AdatsqConfig())._process_model_before_weight_loading(Model())


@pytest.mark.parametrize("value", ["8", 1.5, None, [4], -1])
@pytest.mark.parametrize("part", ["weight_bits", "group", "block", "rank", "time_groups"])
def test_a_part_of_a_layer_that_is_no_size_is_named(part: str, value: object) -> None:
    wrong = config(layers={"quantized": {**SPEC.plain(), part: value}})
    with pytest.raises(ValueError, match="quantization_config of layer 'quantized': "):
        _ = wrong.specs
