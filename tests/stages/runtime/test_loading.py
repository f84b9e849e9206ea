"""A quantized folder as a user meets it: loads with from_pretrained, follows its policy, refuses damage by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file

import adatsq_pipe.stages.runtime  # noqa: F401
from adatsq_pipe.stages.numerics.grid import dequantize, fake_quantize_tokens, weight_grid
from adatsq_pipe.stages.numerics.transform import hadamard, rotate
from adatsq_pipe.stages.runtime.clock import nearest_step, timestep_of
from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.runtime.model import quantized_layers
from adatsq_pipe.stages.runtime.spec import LayerSpec
from adatsq_pipe.storage.fingerprint import file_digest
from tests.conftest import PATIENCE
from tests.whole import harness

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("made") / "run"
    done = harness.run(*harness.tiny(run, tiny_flux, "--stages", "capture..assemble"))
    assert done.returncode == 0, done.stderr
    return (run / "model").resolve()


@pytest.mark.run
def test_every_loader_loads_it(model: Path) -> None:
    for load in (FluxPipeline.from_pretrained, DiffusionPipeline.from_pretrained):
        pipe = load(model)
        assert quantized_layers(pipe.transformer)
    bare = FluxTransformer2DModel.from_pretrained(model / "transformer", dtype=torch.bfloat16)
    layer = next(iter(quantized_layers(bare).values()))
    assert layer.scale.dtype == torch.bfloat16 and layer.codes.dtype == torch.uint8


@pytest.mark.run
def test_saving_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    FluxTransformer2DModel.from_pretrained(model / "transformer", dtype=torch.float32).save_pretrained(tmp_path / "a")
    FluxTransformer2DModel.from_pretrained(tmp_path / "a", dtype=torch.float32).save_pretrained(tmp_path / "b")
    name = Path(WEIGHTS).name
    assert file_digest(tmp_path / "a" / name) == file_digest(tmp_path / "b" / name)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]["quant_method"] == "adatsq"


@pytest.mark.run
def test_it_follows_its_policy(model: Path) -> None:
    pipe = FluxPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    layers = list(quantized_layers(pipe.transformer).values())
    seen: list[list[int]] = []
    layers[0].register_forward_hook(lambda *_: seen.append([layer.bits for layer in layers]))
    call = json.loads((model / "sampling.json").read_text())["call"]
    pipe("a red circle", **call)
    wanted = [[int(layer.policy[t]) for layer in layers] for t in range(call["num_inference_steps"])]
    assert seen == wanted


def test_other_step_counts_take_the_nearest_noise_level() -> None:
    calibrated = torch.tensor([1.0, 0.7, 0.3])
    assert nearest_step(torch.tensor([0.95]), calibrated) == [0]
    assert nearest_step(torch.tensor([0.45]), calibrated) == [2]
    assert nearest_step(torch.tensor([0.9, 0.1]), calibrated) == [0, 2]
    assert timestep_of(lambda x, t: None, (1, torch.tensor([0.5])), {}).tolist() == [0.5]
    with pytest.raises(TypeError, match="timestep"):
        timestep_of(lambda x: None, (1,), {})


@pytest.mark.run
def test_without_the_import_diffusers_names_the_method(model: Path) -> None:
    script = f"from diffusers import FluxTransformer2DModel as F; F.from_pretrained({str(model / 'transformer')!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert "Unknown quantization type, got adatsq" in done.stderr
    assert "Unknown quantization type, got adatsq" in (model / "README.md").read_text()


@pytest.mark.run
def test_the_runtime_needs_neither_ray_nor_zarr(model: Path) -> None:
    script = (
        "import sys\nfor name in ('ray', 'zarr', 'pyarrow', 'pydantic', 'click'): sys.modules[name] = None\n"
        "import adatsq_pipe.stages.runtime\nfrom diffusers import FluxTransformer2DModel as F\n"
        f"F.from_pretrained({str(model / 'transformer')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


@pytest.mark.run
@pytest.mark.parametrize(
    ("damage", "words"),
    [("missing", "lack 1 tensors"), ("shape", "expected"), ("format", "format 99"), ("layer", "no linear layer")],
)
def test_damage_is_refused_by_name(damage: str, words: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    shutil.copytree(model / "transformer", folder)
    tensors = load_file(folder / Path(WEIGHTS).name)
    config = json.loads((folder / "config.json").read_text())
    name = "transformer_blocks.0.attn.to_q"
    if damage == "missing":
        del tensors[f"{name}.scale"]
    elif damage == "shape":
        tensors[f"{name}.policy"] = tensors[f"{name}.policy"][:-1].clone()
    elif damage == "format":
        config["quantization_config"]["format"] = 99
    else:
        config["quantization_config"]["layers"]["blocks.7.mlp"] = config["quantization_config"]["layers"][name]
    save_file(tensors, folder / Path(WEIGHTS).name, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        FluxTransformer2DModel.from_pretrained(folder)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("activation", [3, 8, 16])
def test_the_layer_is_plain_float_maths(bits: int, group: int, activation: int) -> None:
    random = torch.Generator().manual_seed(bits)
    w, x = torch.randn(12, 96, generator=random), torch.randn(2, 5, 96, generator=random)
    grid = weight_grid(w, bits=bits, group=group, symmetric=False, clip=False)
    scale = grid.scale_OG.bfloat16()
    codes = torch.randint(0, 2**bits, w.shape, generator=random).to(torch.uint8)
    spec = LayerSpec(weight_bits=bits, group=group, block=32, symmetric_activations=False)
    layer = QuantizedLinear(96, 12, spec=spec, steps=1, bias=True, dtype=torch.float32)
    layer.set_tensors({"codes": codes, "scale": scale, "zero": grid.zero_OG.to(torch.uint8)})
    layer.bits = activation
    repeat = 96 // scale.shape[1]
    weight = dequantize(codes, scale.float().repeat_interleave(repeat, 1), grid.zero_OG.repeat_interleave(repeat, 1))
    rotated = rotate(x, hadamard(32, dtype=torch.float32))
    rounded = fake_quantize_tokens(rotated, 2.0**activation - 1, symmetric=False) if activation < 16 else rotated
    assert layer.bias is not None
    assert torch.allclose(layer(x), rounded @ weight.T + layer.bias, atol=1e-4, rtol=1e-5)
