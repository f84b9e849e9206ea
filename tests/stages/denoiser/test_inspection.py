"""What inspection says adds up, agrees with what a capture finds, and what cannot be taken is refused with a reason."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from torch import nn

from adatsq_pipe.stages.architecture import layers, support
from adatsq_pipe.stages.base.errors import NotTaken
from adatsq_pipe.stages.denoiser import inspection
from adatsq_pipe.stages.runtime.clock import monotonic, timestep_of
from tests.conftest import FAMILIES


def _walked(folder: Path, name: str, called: bool) -> inspection.Inspection:
    pipeline = json.loads((folder / "model_index.json").read_text())["_class_name"]
    if not called:
        module = inspection.on_meta(json.loads((folder / "transformer" / "config.json").read_text()), folder)
        return inspection.walk(module, watched=None, component="transformer", pipeline=pipeline)
    call = json.loads((folder / "sampling.json").read_text())["call"]
    prompt = "207" if name == "dit" else "a red circle"
    module, watched = inspection.watch(folder, dtype="float32", device="cpu", call=call, prompt=prompt)["transformer"]
    return inspection.walk(module, watched=watched, component="transformer", pipeline=pipeline)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_in_a_group_or_left(name: str, family: Callable[[str], Path]) -> None:
    for called in (False, True):
        found = _walked(family(name), name, called)
        quantized = sum(group.parameters for group in found.groups)
        assert quantized + sum(rest.parameters for rest in found.left) == found.parameters
        assert quantized > 0 and all(rest.why for rest in found.left)
        assert found.timestep is not None and found.timestep[0] in ("timestep", "t")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_tells_the_loop_and_the_macs(name: str, family: Callable[[str], Path]) -> None:
    found = _walked(family(name), name, True)
    assert found.watched is not None
    assert found.watched.calls_per_step == (2 if name == "wan" else 1)
    assert (
        found.watched.steps == json.loads((family(name) / "sampling.json").read_text())["call"]["num_inference_steps"]
    )
    assert all(group.macs and group.macs > 0 for group in found.groups)
    assert any(len(names) == 3 for names in found.shared)


def test_names_agree_with_calls_on_what_is_modulation(family: Callable[[str], Path]) -> None:
    """The guess of a config alone is what a call shows, on families that name their modulation."""
    for name in ("flux", "z-image", "dit"):
        guessed = {row.name: row.role for row in _walked(family(name), name, False).rows}
        seen = {row.name: row.role for row in _walked(family(name), name, True).rows}
        assert {name: guessed[name] for name in seen} == seen and "conditioning" in seen.values()


class _Odd(nn.Module):
    """Blocks that hold what is no linear layer, and an embedder cut into a list."""

    def __init__(self) -> None:
        super().__init__()
        self.cut_embedder = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        block = nn.Module()
        block.attend, block.feed = nn.Linear(32, 32), nn.Linear(32, 32)
        block.mix, block.table = nn.Conv1d(32, 32, 3), nn.Embedding(10, 32)
        block.experts = nn.Module()
        block.experts.weight = nn.Parameter(torch.zeros(4, 32, 32))
        self.blocks = nn.ModuleList([block])


def test_what_is_no_linear_is_named_with_its_reason() -> None:
    odd = _Odd()
    assert list(layers.quantizable_linears(odd)) == ["blocks.0.attend", "blocks.0.feed"]
    why = {left.name: left.why for left in layers.skipped_modules(odd)}
    assert "convolution" in why["blocks.0.mix"] and "table" in why["blocks.0.table"]
    assert "grouped experts" in why["blocks.0.experts"] and "embedder" in why["cut_embedder.0"]


def test_the_source_says_what_the_class_takes() -> None:
    """Read without importing, the arguments are those that Python itself sees; `**kwargs` aside."""
    read = 0
    for name in ("FluxPipeline", "ZImagePipeline", "WanPipeline", "DiTPipeline", "QwenImagePipeline", "MochiPipeline"):
        source = support.call_source(name)
        assert source is not None
        assert list(source.arguments) == list(inspect.signature(getattr(diffusers, name).__call__).parameters)[1:]
        read += len(source.arguments)
    assert read > 60


@pytest.mark.parametrize(
    ("index", "shapes", "words"),
    [
        ({"_class_name": "FluxPipeline"}, {"x_embedder": (4, 4)}, ("no linear layers inside repeated blocks",)),
        ({"_class_name": "AnyFlowFARPipeline"}, {}, ("cache", "kv_cache")),
        ({"_class_name": "VisualClozePipeline"}, {}, ("neither a prompt nor class_labels",)),
        ({"_class_name": "WanImageToVideoPipeline"}, {}, ("needs image",)),
    ],
)
def test_what_cannot_be_taken(index: dict[str, object], shapes: dict[str, tuple[int, ...]], words: list[str]) -> None:
    reason = support.refusal(index, shapes)
    assert all(word in reason for word in words), reason


def test_a_cache_that_stays_empty_is_no_reason() -> None:
    keeping = {"_class_name": "QwenImage21Pipeline"}
    assert "set model.call.use_kv_cache=false" in support.refusal(keeping, {})
    assert "cache" in support.refusal(keeping, {}, call={"use_kv_cache": True})
    assert support.refusal(keeping, {}, call={"use_kv_cache": False}) == ""
    of_pictures = {"_class_name": "GlmImagePipeline", "transformer": ["diffusers", "GlmImageTransformer2DModel"]}
    assert support.refusal(of_pictures, {}) == ""
    assert "keeps a cache" in support.refusal(of_pictures, {}, prompt_arguments=["image"])


def test_the_source_says_who_decodes_in_pieces() -> None:
    said = {name: support.call_source(name) for name in ("FluxPipeline", "WanPipeline", "MotifVideoPipeline")}
    assert [source is not None and source.decodes_often for source in said.values()] == [False, False, True]


@pytest.mark.parametrize("second", [[None, None], ["diffusers", "WanTransformer3DModel"]])
def test_a_wan_of_one_denoiser_or_two_is_taken(second: list[str | None]) -> None:
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "X"], "transformer_2": second}
    assert support.refusal(index, {"blocks.0.attn1.to_q": (8, 8)}) == ""
    assert support.denoisers(index) == ["transformer", "transformer_2"][: 2 if second[0] else 1]


def test_a_quantized_folder_and_another_model_are_refused(tiny_flux: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_flux, copy)
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "adatsq"}}))
    with pytest.raises(NotTaken, match="quantized already"):
        support.check_pipeline(copy)
    for value in (4, 0, "bitsandbytes", "", [], {}, {"quant_method": 5}):
        path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": value}))
        with pytest.raises(NotTaken, match=r"transformer/config\.json has a quantization_config"):
            support.check_pipeline(copy)
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": None}))
    support.check_pipeline(copy)
    index = copy / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": ""}))
    with pytest.raises(NotTaken, match="names no pipeline class"):
        support.check_pipeline(copy)
    with pytest.raises(NotTaken, match="'BertModel' is no model of the installed diffusers"):
        inspection.on_meta({"_class_name": "BertModel"}, "there")
    for key, value in (("num_layers", None), ("attention_head_dim", -1), ("out_channels", {"a": 1})):
        with pytest.raises(NotTaken, match="there: FluxTransformer2DModel cannot be made of these values: "):
            inspection.on_meta({"_class_name": "FluxTransformer2DModel", "num_single_layers": 1, key: value}, "there")


def test_the_timestep_is_found_by_name_or_place() -> None:
    assert timestep_of(lambda x, level: None, (torch.zeros(2, 4), torch.tensor([0.5])), {}).tolist() == [0.5]
    assert timestep_of(lambda x, timestep: None, (1,), {"timestep": 3}).tolist() == [3.0]
    with pytest.raises(TypeError, match="no policy can follow"):
        timestep_of(lambda x, text: None, (torch.zeros(2, 4), torch.zeros(2, 4)), {})
    assert monotonic([9, 9, 5, 1]) and monotonic([0.1, 0.2]) and not monotonic([1, 3, 2])


def test_a_call_that_the_pipeline_refuses_is_refused_as_by_a_run(tiny_flux: Path) -> None:
    with pytest.raises(NotTaken, match=r"without one call of its denoiser.*\(nothing was started\)"):
        inspection.watch(tiny_flux, dtype="float32", device="cpu", call={"sigmas": []}, prompt="a red circle")


@pytest.mark.parametrize(
    "name", ["FluxPipeline", "FluxImg2ImgPipeline", "WanPipeline", "DiTPipeline", "ZImagePipeline"]
)
def test_the_components_that_a_pipeline_takes_are_those_of_its_class(name: str) -> None:
    import diffusers

    made = getattr(diffusers, name)
    expected, optional = made._get_signature_keys(made)
    assert support.components_taken(name) == {*expected, *optional}


def test_the_components_of_a_class_that_is_not_diffusers_own_are_not_known() -> None:
    assert support.components_taken("MyPipeline") is None and support.components_taken("") is None
