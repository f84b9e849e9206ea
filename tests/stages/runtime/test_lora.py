"""LoRAs on quantized pipelines, through the calls of diffusers: each against plain linears that hold the LoRA."""

from __future__ import annotations

import copy
import importlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline, DiTTransformer2DModel, FluxControlPipeline, FluxImg2ImgPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import adatsq_pipe.stages.runtime as runtime
from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.runtime.model import quantized_layers
from adatsq_pipe.stages.runtime.policy_hook import remove_policy_hook
from adatsq_pipe.stages.runtime.text_layers import PackedLinear, packings, place
from adatsq_pipe.storage.fingerprint import file_digest
from tests.stages.runtime.folders import quantize
from tests.stages.runtime.test_families import TIMESTEPS, WEIGHTS, draw
from tests.support.quantized_layers import PARTS, POLICY, layer_of, output_by_hand, random_tensors, spec_with
from tests.zoo.language import qwen_image

peft = pytest.importorskip("peft", reason="a LoRA needs peft, which the dev dependencies name")
allow_lora = importlib.import_module("adatsq_pipe.stages.runtime.lora").allow_lora
pytestmark = [
    # peft itself, at a second adapter, and where one that is active is deleted.
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted:UserWarning:peft"),
]

RECIPES: dict[str, dict[str, Any]] = {
    "rotated": {"block": 16},
    "smoothed and ordered": {"block": 1, "smoothed": True, "permuted": True},
    "low-rank": {"block": 16, "rank": 2, "smoothed": True},
}
FAMILIES = ("flux", "z-image", "wan", "qwen")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder_of(family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of a family's tiny pipeline, quantized by a recipe."""
    made: dict[tuple[str, str], Path] = {}

    def folder(name: str, recipe: str = "low-rank") -> Path:
        if (name, recipe) not in made:
            place = tmp_path_factory.mktemp("quantized")
            timesteps = TIMESTEPS.get(name, [1.0, 0.6, 0.2])
            made[name, recipe] = quantize(_source(name, family, place), place / name, timesteps, **RECIPES[recipe])
        return made[name, recipe]

    return folder


def _source(name: str, family: Callable[[str], Path], place: Path) -> Path:
    if name != "qwen":
        return family(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe, call = qwen_image()
    pipe.save_pretrained(place / "source")
    (place / "source" / "sampling.json").write_text(json.dumps({"call": call}))
    return place / "source"


@pytest.fixture
def flux(folder_of: Callable[[str, str], Path]) -> Path:
    return folder_of("flux", "low-rank")


def loaded(folder: Path, *, rounding: bool = True, **how: Any) -> Any:
    """The pipeline; without `rounding` its layers leave their inputs as they are, and so compute what linears do."""
    pipe = DiffusionPipeline.from_pretrained(folder, **how)
    if not rounding:
        remove_policy_hook(pipe.transformer)
    return pipe


def linears(folder: Path) -> dict[str, nn.Linear]:
    """Every linear of the dequantized transformer, by name: those that were quantized and the others."""
    pipe = loaded(folder)
    pipe.transformer.dequantize()
    return {name: module for name, module in pipe.transformer.named_modules() if isinstance(module, nn.Linear)}


def lora_for(layers: Mapping[str, nn.Linear], *, rank: int = 3, seed: int = 0) -> State:
    """A random LoRA in diffusers' format, large enough to change a picture."""
    random, state = torch.Generator().manual_seed(seed), {}
    for name, layer in layers.items():
        down = torch.randn(rank, layer.in_features, generator=random) / layer.in_features**0.5
        state[f"transformer.{name}.lora_A.weight"] = down
        state[f"transformer.{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=random) * 0.3
    return state


def dense(folder: Path, *loras: tuple[float, State]) -> Any:
    """The pipeline with plain linears, to whose weights the scaled products of the LoRAs' matrices were added."""
    pipe = loaded(folder, rounding=False)
    pipe.transformer.dequantize()
    for scale, state in loras:
        for key, down in state.items():
            if key.endswith(".lora_A.weight"):
                layer = pipe.transformer.get_submodule(key.removeprefix("transformer.").removesuffix(".lora_A.weight"))
                product = state[key.replace("lora_A", "lora_B")].double() @ down.double()
                layer.weight.data = (layer.weight.double() + scale * product).to(layer.weight.dtype)
    return pipe


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() < 1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_picture_is_that_of_plain_linears_with_the_lora(
    name: str, recipe: str, folder_of: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = folder_of(name, recipe)
    lora = lora_for(linears(folder))
    save_file(lora, tmp_path / "lora.safetensors")
    wanted, without = draw(dense(folder, (1.0, lora)), folder), draw(dense(folder), folder)
    assert (wanted - without).abs().max() > 5e-3
    pipe = loaded(folder, rounding=False)
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    layers = quantized_layers(pipe.transformer)
    assert layers and all(layer.endswith(".base_layer") for layer in layers)
    for execution in runtime.EXECUTIONS:
        runtime.execute(pipe.transformer, execution)
        assert close(draw(pipe, folder), wanted), execution


@pytest.mark.parametrize("execution", runtime.EXECUTIONS)
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_the_branch_reads_the_input_that_is_not_rounded(parts: dict[str, Any], execution: str) -> None:
    """At 3 bits, against float64 by hand: two adapters with their scales, and an alpha that is not the rank."""
    spec, width, out = spec_with(**parts), 32, 12
    tensors = random_tensors(spec, width, out, 6)
    layer = layer_of(spec, tensors)
    layer.execution = execution
    layer.set_step(0, POLICY)
    allow_lora(layer)
    holder = nn.ModuleDict({"layer": layer})
    x = torch.randn(7, width, generator=torch.Generator().manual_seed(1))
    assert layer.bias is not None
    wanted = output_by_hand(spec, tensors, layer.bias, x, bits=POLICY[0])
    for name, alpha in (("first", 6), ("second", 2)):
        config = peft.LoraConfig(r=3, lora_alpha=alpha, target_modules=["layer"])
        peft.inject_adapter_in_model(config, holder, name)
    adapted: Any = holder["layer"]
    adapted.set_adapter(["first", "second"])
    adapted.set_scale("second", 0.5)
    for name, scale in (("first", 6 / 3), ("second", 0.5 * 2 / 3)):
        up = adapted.lora_B[name].weight
        torch.nn.init.normal_(up, generator=torch.Generator().manual_seed(2))
        wanted = wanted + scale * (x.double() @ adapted.lora_A[name].weight.double().T @ up.double().T)
    assert (adapted(x).double() - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_unloading_gives_the_pictures_from_before(
    name: str, folder_of: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = folder_of(name, "rotated")
    pipe = loaded(folder)
    before, names = draw(pipe, folder), list(quantized_layers(pipe.transformer))
    pipe.load_lora_weights(lora_for(linears(folder)))
    assert not torch.equal(draw(pipe, folder), before)
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe, folder), before)
    assert list(quantized_layers(pipe.transformer)) == names


def test_the_bits_follow_the_policy_with_a_lora(flux: Path) -> None:
    pipe = loaded(flux)
    pipe.load_lora_weights(lora_for(linears(flux)))
    layers, seen = quantized_layers(pipe.transformer), []
    next(iter(layers.values())).register_forward_hook(lambda layer, *_: seen.append(layer.bits))
    draw(pipe, flux)
    assert seen == [3, 4, 8, 8]


@pytest.fixture
def two(flux: Path) -> tuple[State, State]:
    """Two LoRAs of different ranks: one of all linears, one of those of attention."""
    layers = linears(flux)
    return lora_for(layers, rank=2, seed=1), lora_for({n: m for n, m in layers.items() if "attn" in n}, rank=4, seed=2)


@pytest.fixture
def with_two(flux: Path, two: tuple[State, State]) -> Any:
    pipe = loaded(flux, rounding=False)
    for name, lora in zip(("first", "second"), two, strict=True):
        pipe.load_lora_weights(lora, adapter_name=name)
    return pipe


def test_several_adapters_add_up_by_their_weights(with_two: Any, two: tuple[State, State], flux: Path) -> None:
    first, second = two
    with_two.set_adapters(["first", "second"], adapter_weights=[0.5, -1.5])
    assert sorted(with_two.get_active_adapters()) == ["first", "second"]
    assert close(draw(with_two, flux), draw(dense(flux, (0.5, first), (-1.5, second)), flux))
    with_two.set_adapters("second", 2.0)
    assert with_two.get_active_adapters() == ["second"]
    assert close(draw(with_two, flux), draw(dense(flux, (2.0, second)), flux))


def test_a_scale_in_the_call_scales_the_lora_of_that_call(with_two: Any, two: tuple[State, State], flux: Path) -> None:
    with_two.set_adapters("first", 0.5)
    whole = draw(with_two, flux)
    call = {"prompt": "a red circle", "height": 16, "width": 16, "num_inference_steps": 4, "max_sequence_length": 16}
    call |= {"generator": torch.Generator().manual_seed(0), "output_type": "np"}
    found = torch.as_tensor(with_two(**call, joint_attention_kwargs={"scale": 0.5})[0])
    assert close(found, draw(dense(flux, (0.25, two[0])), flux))
    assert torch.equal(draw(with_two, flux), whole)


def test_a_deleted_adapter_is_gone_and_the_other_stays(with_two: Any, two: tuple[State, State], flux: Path) -> None:
    with_two.delete_adapters("first")
    with_two.set_adapters("second")
    assert with_two.get_list_adapters() == {"transformer": ["second"]}
    assert close(draw(with_two, flux), draw(dense(flux, (1.0, two[1])), flux))


def test_a_disabled_lora_draws_as_none_and_comes_back(with_two: Any, flux: Path) -> None:
    before = draw(with_two, flux)
    with_two.disable_lora()
    assert torch.equal(draw(with_two, flux), draw(loaded(flux, rounding=False), flux))
    with_two.enable_lora()
    assert torch.equal(draw(with_two, flux), before)


def test_an_adapter_moves_to_a_device_without_its_layers(with_two: Any) -> None:
    with_two.set_lora_device(["first"], "meta")
    branches = {name: p for name, p in with_two.transformer.named_parameters() if "lora_" in name}
    devices = {name.split(".")[-2]: p.device.type for name, p in branches.items()}
    assert devices == {"first": "meta", "second": "cpu"}
    assert {layer.codes.device.type for layer in quantized_layers(with_two.transformer).values()} == {"cpu"}


def test_a_lora_in_kohyas_format_is_converted_by_diffusers(flux: Path) -> None:
    """Joint q, k and v, and an alpha: diffusers cuts and scales them before it loads."""
    random = torch.Generator().manual_seed(5)
    down, up = torch.randn(4, 32, generator=random) / 6, torch.randn(96, 4, generator=random) / 3
    joint, alpha = "lora_unet_double_blocks_0_img_attn_qkv", torch.tensor(2.0)
    pipe = loaded(flux, rounding=False)
    pipe.load_lora_weights({f"{joint}.lora_down.weight": down, f"{joint}.lora_up.weight": up, f"{joint}.alpha": alpha})
    parts: State = {}
    for part, rows in zip("qkv", up.split(32), strict=True):
        parts[f"transformer.transformer_blocks.0.attn.to_{part}.lora_A.weight"] = down
        parts[f"transformer.transformer_blocks.0.attn.to_{part}.lora_B.weight"] = rows
    wanted = draw(dense(flux, (2 / 4, parts)), flux)
    assert close(draw(pipe, flux), wanted) and not close(draw(dense(flux), flux), wanted)


ORIGINAL = {
    "wan": ("diffusion_model.blocks.0.self_attn.q", "blocks.0.attn1.to_q", 24),
    "z-image": ("lora_unet_layers_0_attention_to_q", "layers.0.attention.to_q", 32),
    "qwen": ("lora_unet_transformer_blocks_0_attn_to_q", "transformer_blocks.0.attn.to_q", 32),
}
"""A layer by the name that trainers of the original model give it, by that of diffusers, and its width."""


@pytest.mark.parametrize("name", ORIGINAL)
def test_a_lora_in_the_original_models_format_is_converted_by_diffusers(
    name: str, folder_of: Callable[[str, str], Path]
) -> None:
    folder, (theirs, layer, width) = folder_of(name, "low-rank"), ORIGINAL[name]
    random = torch.Generator().manual_seed(5)
    down, up = torch.randn(4, width, generator=random), torch.randn(width, 4, generator=random)
    pipe = loaded(folder, rounding=False)
    pipe.load_lora_weights(
        {f"{theirs}.lora_down.weight": down, f"{theirs}.lora_up.weight": up, f"{theirs}.alpha": torch.tensor(2.0)}
    )
    same = {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
    wanted = draw(dense(folder, (2 / 4, same)), folder)
    difference = (wanted - draw(dense(folder), folder)).abs().max()
    assert (draw(pipe, folder) - wanted).abs().max() < 0.02 * difference


def test_a_control_lora_widens_the_first_layer(flux: Path) -> None:
    pipe = FluxControlPipeline.from_pretrained(flux)
    pipe.set_progress_bar_config(disable=True)
    first, layers = pipe.transformer.x_embedder, linears(flux)
    lora = lora_for({"transformer_blocks.0.attn.to_q": layers["transformer_blocks.0.attn.to_q"]})
    lora["transformer.x_embedder.lora_A.weight"] = torch.ones(3, 2 * first.in_features)
    lora["transformer.x_embedder.lora_B.weight"] = torch.ones(first.out_features, 3)
    pipe.load_lora_weights(lora)
    call: dict[str, Any] = {"prompt": "a", "height": 16, "width": 16, "num_inference_steps": 1, "output_type": "np"}
    picture = pipe(**call, control_image=Image.new("RGB", (16, 16)), max_sequence_length=16)[0]
    assert picture.shape == (1, 16, 16, 3) and pipe.transformer.x_embedder.in_features == 2 * first.in_features
    pipe.unload_lora_weights(reset_to_overwritten_params=True)
    assert torch.equal(pipe.transformer.x_embedder.weight, first.weight)


def test_a_lora_of_unquantized_layers_alone_may_be_fused(flux: Path) -> None:
    lora = lora_for({name: layer for name, layer in linears(flux).items() if "embedder" in name})
    pipe = loaded(flux, rounding=False)
    names = list(quantized_layers(pipe.transformer))
    pipe.load_lora_weights(lora)
    assert list(quantized_layers(pipe.transformer)) == names
    wanted = draw(dense(flux, (1.0, lora)), flux)
    assert close(draw(pipe, flux), wanted)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert close(draw(pipe, flux), wanted)


def test_fusing_into_codes_is_refused_before_anything_changes(with_two: Any, flux: Path) -> None:
    with_two.set_adapters(["first", "second"])
    before = draw(with_two, flux)
    with pytest.raises(ValueError, match=r"cannot be fused into low-bit codes, .* which needs no fuse_lora"):
        with_two.fuse_lora()
    with pytest.raises(ValueError, match="cannot be fused into low-bit codes"):
        with_two.fuse_lora(adapter_names=["second"], lora_scale=0.5)
    assert torch.equal(draw(with_two, flux), before)
    adapted = with_two.transformer.transformer_blocks[0].attn.to_q
    with pytest.raises(ValueError, match="cannot be fused into low-bit codes"):
        adapted.merge()


def test_after_dequantizing_it_is_fused(with_two: Any, two: tuple[State, State], flux: Path) -> None:
    with_two.set_adapters("first", 0.5)
    with_two.transformer.dequantize()
    with_two.fuse_lora()
    with_two.unload_lora_weights()
    assert close(draw(with_two, flux), draw(dense(flux, (0.5, two[0])), flux))


def test_a_model_is_saved_without_its_lora_byte_for_byte(flux: Path, two: tuple[State, State], tmp_path: Path) -> None:
    pipe = loaded(flux)
    for lora in two:
        pipe.load_lora_weights(lora)
    with pytest.warns(UserWarning, match="saved without its LoRA.*save_lora_weights"):
        pipe.save_pretrained(tmp_path)
    assert file_digest(tmp_path / "transformer" / WEIGHTS) == file_digest(flux / "transformer" / WEIGHTS)
    assert torch.equal(draw(loaded(tmp_path), flux), draw(loaded(flux), flux))


def test_a_lora_is_saved_and_loaded_by_itself(
    with_two: Any, two: tuple[State, State], flux: Path, tmp_path: Path
) -> None:
    with_two.transformer.save_lora_adapter(tmp_path, adapter_name="second")
    pipe = loaded(flux, rounding=False)
    pipe.transformer.load_lora_adapter(tmp_path / "pytorch_lora_weights.safetensors", prefix=None)
    assert close(draw(pipe, flux), draw(dense(flux, (1.0, two[1])), flux))


def test_an_adapter_is_swapped_in_place(flux: Path, two: tuple[State, State]) -> None:
    other = lora_for(linears(flux), rank=4, seed=9)
    pipe = loaded(flux, rounding=False)
    pipe.enable_lora_hotswap(target_rank=6)
    pipe.load_lora_weights(two[0], adapter_name="style")
    assert close(draw(pipe, flux), draw(dense(flux, (1.0, two[0])), flux))
    pipe.load_lora_weights(other, adapter_name="style", hotswap=True)
    assert close(draw(pipe, flux), draw(dense(flux, (1.0, other)), flux))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_branch_has_the_models_dtype_also_after_a_cast(
    flux: Path, two: tuple[State, State], dtype: torch.dtype
) -> None:
    pipe = loaded(flux, dtype=dtype)
    pipe.load_lora_weights(two[0])
    assert {p.dtype for name, p in pipe.transformer.named_parameters() if "lora_" in name} == {dtype}
    pipe = loaded(flux)
    pipe.load_lora_weights(two[0])
    pipe.to(dtype)
    pipe.load_lora_weights(two[1])
    assert {p.dtype for name, p in pipe.transformer.named_parameters() if "lora_" in name} == {dtype}


def test_a_lora_of_narrower_inputs_is_filled_with_zeros(flux: Path) -> None:
    """As diffusers does it for layers that are not quantized: a LoRA of another checkpoint of the same model."""
    layers = linears(flux)
    lora = lora_for({name: layers[name] for name in ("transformer_blocks.0.attn.to_q", "x_embedder")})
    narrow = {key: tensor[:, :12] if "lora_A" in key else tensor for key, tensor in lora.items()}
    filled = {key: nn.functional.pad(t, (0, lora[key].shape[1] - t.shape[1])) for key, t in narrow.items()}
    for adapters in (1, 2):
        pipe = loaded(flux, rounding=False)
        for adapter in range(adapters):
            pipe.load_lora_weights(narrow, adapter_name=f"adapter{adapter}")
        assert close(draw(pipe, flux), draw(dense(flux, (1.0, filled)), flux))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"lora_A": (2, 40), "lora_B": (32, 2)}, "has 40 input channels, its layer 32: the LoRA is of another model"),
        ({"lora_A": (2, 32), "lora_B": (48, 2)}, r"lora_B.*torch.Size\(\[48, 2\]\).*torch.Size\(\[32, 2\]\)"),
        ({"lora_A": (2, 32), "lora_B": (32, 3)}, r"torch.Size\(\[2, 32\]\).*torch.Size\(\[3, 32\]\)"),
    ],
)
def test_a_lora_of_another_shape_is_refused_and_leaves_the_pipeline_as_it_was(
    wrong: dict[str, tuple[int, int]], words: str, flux: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    pipe = loaded(flux)
    before = draw(pipe, flux)
    name = "transformer.transformer_blocks.0.attn.to_q"
    with pytest.raises((ValueError, RuntimeError), match=f"(?s){words}"):
        pipe.load_lora_weights({f"{name}.{part}.weight": torch.ones(shape) for part, shape in wrong.items()})
    assert torch.equal(draw(pipe, flux), before)


def test_a_lora_of_a_quantized_text_encoder(flux: Path) -> None:
    pipe = loaded(flux)
    layers = place(pipe.text_encoder, packings(pipe.text_encoder, 8), torch.float32)
    name = next(name for name in layers if name.endswith("q_proj"))
    layer = layers[name]
    assert isinstance(layer, PackedLinear)
    lora = {
        key.replace("transformer.", "text_encoder."): tensor
        for key, tensor in lora_for({name: nn.Linear(layer.in_features, layer.out_features)}).items()
    }
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(1))
    down, up = (lora[f"text_encoder.{name}.lora_{part}.weight"].double() for part in "AB")
    wanted = layer.plain()(x).double() + x.double() @ down.T @ up.T
    pipe.load_lora_weights(lora)
    adapted = pipe.text_encoder.get_submodule(name)
    assert {p.dtype for part, p in adapted.named_parameters() if "lora_" in part} == {torch.float32}
    assert (adapted(x).double() - wanted).abs().max() < 1e-5 * wanted.abs().max()
    with pytest.raises(ValueError, match="cannot be fused into low-bit codes"):
        pipe.fuse_lora(components=["text_encoder"])
    pipe.unload_lora_weights()
    assert pipe.text_encoder.get_submodule(name) is layer


LAYER = "transformer.transformer_blocks.0.attn.to_q"
REFUSED: dict[str, tuple[str, Callable[[Any, State], None]]] = {
    "another width": (
        "(?s)size mismatch",
        lambda pipe, lora: pipe.load_lora_weights(lora | {f"{LAYER}.lora_B.weight": torch.ones(48, 2)}),
    ),
    "DoRA": (
        "a DoRA rescales a layer's full-precision weight",
        lambda pipe, lora: pipe.load_lora_weights(lora | {f"{LAYER}.lora_magnitude_vector": torch.ones(32)}),
    ),
    "pissa": (
        "init_lora_weights='pissa' starts from a layer's full-precision weight",
        lambda pipe, lora: pipe.transformer.add_adapter(_config(peft.LoraConfig, init_lora_weights="pissa"), "new"),
    ),
    "LoKr": (
        r"QuantizedL\w+'> not supported",
        lambda pipe, lora: pipe.transformer.add_adapter(_config(peft.LoKrConfig), "new"),
    ),
    "LoHa": (
        r"QuantizedL\w+'> not supported",
        lambda pipe, lora: pipe.transformer.add_adapter(_config(peft.LoHaConfig), "new"),
    ),
}


def _config(kind: Any, **more: Any) -> Any:
    return kind(r=2, target_modules=["x_embedder", "to_q"], **more)


@pytest.mark.parametrize("loras", [0, 1])
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_leaves_no_trace(
    what: str, loras: int, flux: Path, two: tuple[State, State], caplog: pytest.LogCaptureFixture
) -> None:
    """Also where layers that are not quantized had their turn before the one that refuses."""
    caplog.set_level(logging.CRITICAL)
    pipe = loaded(flux)
    if loras:
        pipe.load_lora_weights(two[1], adapter_name="second")
    before, names = draw(pipe, flux), list(pipe.transformer.state_dict())
    words, load = REFUSED[what]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=words):
        load(pipe, two[0])
    assert torch.equal(draw(pipe, flux), before) and list(pipe.transformer.state_dict()) == names
    assert pipe.get_active_adapters() == ["second"] * loras
    pipe.load_lora_weights(two[0], adapter_name="first")
    pipe.set_adapters("first")
    fresh = loaded(flux)
    fresh.load_lora_weights(two[0])
    assert torch.equal(draw(pipe, flux), draw(fresh, flux))


def test_diffusers_has_no_lora_for_dit() -> None:
    assert not hasattr(DiTPipeline, "load_lora_weights") and not hasattr(DiTTransformer2DModel, "add_adapter")


@pytest.mark.run
def test_a_compiled_model_takes_another_lora_without_compiling_again(flux: Path, two: tuple[State, State]) -> None:
    other, pipe = lora_for(linears(flux), rank=2, seed=9), loaded(flux)
    pipe.enable_lora_hotswap(target_rank=3)
    pipe.load_lora_weights(two[0], adapter_name="style")
    wanted = draw(pipe, flux)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert (draw(pipe, flux) - wanted).abs().mean() < 1e-3
    with torch._dynamo.config.patch(error_on_recompile=True):
        pipe.load_lora_weights(other, adapter_name="style", hotswap=True)
        swapped = draw(pipe, flux)
    pipe = loaded(flux)
    pipe.load_lora_weights(other)
    assert (draw(pipe, flux) - swapped).abs().mean() < 1e-3


def _offload(pipe: Any) -> None:
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


OTHERS: dict[str, Callable[[Any], Any]] = {
    "copy": lambda pipe: setattr(pipe, "transformer", copy.deepcopy(pipe.transformer)),
    "group offload": _offload,
    "layerwise casting": lambda pipe: pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.bfloat16, compute_dtype=torch.float32
    ),
}


@pytest.mark.parametrize("first", ["the LoRA", "the feature"])
@pytest.mark.parametrize("feature", OTHERS)
def test_a_lora_goes_with(feature: str, first: str, flux: Path, two: tuple[State, State]) -> None:
    wanted = draw(dense(flux, (1.0, two[0])), flux)
    pipe = loaded(flux, rounding=False)
    for load in (first == "the LoRA", first != "the LoRA"):
        if load:
            pipe.load_lora_weights(two[0])
        else:
            OTHERS[feature](pipe)
    assert (draw(pipe, flux) - wanted).abs().mean() < 1e-2
    pipe.unload_lora_weights()


def test_another_pipeline_of_the_same_model_has_its_lora(flux: Path, two: tuple[State, State]) -> None:
    pipe = loaded(flux)
    pipe.load_lora_weights(two[0], adapter_name="style")
    other = FluxImg2ImgPipeline.from_pipe(pipe)
    assert other.get_active_adapters() == ["style"]
    other.unload_lora_weights()
    assert all(isinstance(layer, QuantizedLinear) for layer in [pipe.transformer.transformer_blocks[0].attn.to_q])
