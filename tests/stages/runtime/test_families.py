"""Quantized folders of every family in stock diffusers: loading, saving, shards, offloading, compilation, damage."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from safetensors.torch import load_file, save_file

import adatsq_pipe.stages.runtime as runtime
from adatsq_pipe.stages.runtime.model import quantized_layers
from adatsq_pipe.stages.runtime.policy_hook import remove_policy_hook
from adatsq_pipe.storage import weights
from adatsq_pipe.storage.fingerprint import file_digest
from tests.conftest import FAMILIES
from tests.stages.runtime.folders import quantize

WEIGHTS = "diffusion_pytorch_model.safetensors"
TIMESTEPS = {
    "flux": [1.0, 0.7, 0.4],
    "z-image": [0.0, 0.4, 0.7],
    "wan": [999.0, 600.0, 300.0],
    "dit": [900.0, 500.0, 9.0],
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(
    request: pytest.FixtureRequest, family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A family's tiny pipeline, quantized."""
    name: str = request.param
    return quantize(family(name), tmp_path_factory.mktemp("quantized") / name, TIMESTEPS[name])


@pytest.fixture(scope="module")
def flux(family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(family("flux"), tmp_path_factory.mktemp("quantized") / "flux", TIMESTEPS["flux"])


def draw(pipe: Any, folder: Path) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {"class_labels": [3]} if folder.name == "dit" else {"prompt": "a red circle"}
    call = json.loads((folder / "sampling.json").read_text())["call"]
    return torch.as_tensor(pipe(**asked, **call, generator=torch.Generator().manual_seed(0), output_type="np")[0])


def test_a_folder_written_in_shards_draws_the_same(
    folder: Path, family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 8_000)
    name = folder.name
    sharded = quantize(family(name), tmp_path / name, TIMESTEPS[name])
    assert len(list((sharded / "transformer").glob("*-of-*.safetensors"))) > 2
    assert not (sharded / "transformer" / WEIGHTS).exists()
    drawn = [draw(DiffusionPipeline.from_pretrained(each), folder) for each in (folder, sharded)]
    assert torch.equal(*drawn)


def test_pipeline_and_bare_transformer_are_the_same(folder: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    drawn = draw(pipe, folder)
    assert drawn.isfinite().all() and quantized_layers(pipe.transformer)
    assert torch.equal(draw(type(pipe).from_pretrained(folder), folder), drawn)
    pipe.transformer = type(pipe.transformer).from_pretrained(folder / "transformer")
    assert torch.equal(draw(pipe, folder), drawn)


def test_every_execution_draws_the_same(folder: Path) -> None:
    pipe, drawn = DiffusionPipeline.from_pretrained(folder), {}
    for execution in runtime.EXECUTIONS:
        runtime.execute(pipe.transformer, execution)
        drawn[execution] = draw(pipe, folder)
    for execution in runtime.EXECUTIONS[1:]:
        # A float's last bit may flip a rounding; a picture of a few pixels shows it.
        assert (drawn[execution] - drawn["reference"]).abs().mean() < 1e-2


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_saving_gives_the_bytes_that_were_loaded(folder: Path, dtype: torch.dtype | None, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder, **({"dtype": dtype} if dtype else {}))
    pipe.save_pretrained(tmp_path)
    assert file_digest(tmp_path / "transformer" / WEIGHTS) == file_digest(folder / "transformer" / WEIGHTS)
    was, now = (json.loads((each / "transformer" / "config.json").read_text()) for each in (folder, tmp_path))
    del now["_name_or_path"]
    assert now == was


def test_what_was_changed_is_saved_as_it_is_now(flux: Path, tmp_path: Path) -> None:
    model = DiffusionPipeline.from_pretrained(flux).transformer
    name, weight = next((n, p) for n, p in model.named_parameters() if n.endswith("proj_out.weight"))
    weight.data += 1e-6
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / WEIGHTS)
    assert torch.equal(saved[name], weight)


def test_shards_load(folder: Path, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    drawn = draw(pipe, folder)
    pipe.transformer.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    pipe.transformer = type(pipe.transformer).from_pretrained(tmp_path)
    assert torch.equal(draw(pipe, folder), drawn)


def test_a_pipeline_quantization_config_may_name_it(folder: Path) -> None:
    config = PipelineQuantizationConfig(quant_mapping={"transformer": runtime.AdatsqConfig()})
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        pipe = DiffusionPipeline.from_pretrained(folder, quantization_config=config)
    assert torch.equal(draw(pipe, folder), draw(DiffusionPipeline.from_pretrained(folder), folder))


def test_a_model_that_is_not_quantized_is_refused(family: Callable[[str], Path]) -> None:
    config = PipelineQuantizationConfig(quant_mapping={"transformer": runtime.AdatsqConfig()})
    with pytest.raises(ValueError, match="require the model to be pre-quantized"):
        DiffusionPipeline.from_pretrained(family("flux"), quantization_config=config)


def _group_offload(pipe: Any, **how: Any) -> None:
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, **how)


def _hooked(pipe: Any) -> None:
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(pipe.transformer, torch.device("cpu"))


def _sequential(pipe: Any) -> None:
    from accelerate import cpu_offload

    cpu_offload(pipe.transformer, torch.device("cpu"))


WORKS: dict[str, Callable[[Any], None]] = {
    "group offload, by block": lambda pipe: _group_offload(pipe, offload_type="block_level", num_blocks_per_group=1),
    "group offload, by leaf": lambda pipe: _group_offload(pipe, offload_type="leaf_level"),
    "model offload hook": _hooked,
    "sequential offload": _sequential,
    "compiled blocks": lambda pipe: pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager"),
    "compiled model": lambda pipe: pipe.transformer.compile(backend="eager"),
    "layerwise casting": lambda pipe: pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.bfloat16, compute_dtype=torch.float32
    ),
    "copy": lambda pipe: setattr(pipe, "transformer", copy.deepcopy(pipe.transformer)),
}
NOT_FOR_DIT = ("group offload, by block", "group offload, by leaf", "compiled blocks")


def _combinations() -> list[Any]:
    """Every family with everything. Compilation takes long: it is a `run`, and of one family unless `extended`."""
    compiled, others = [pytest.mark.run], [pytest.mark.run, pytest.mark.extended]
    return [
        pytest.param(name, what, marks=() if "compiled" not in what else compiled if name == "flux" else others)
        for name in FAMILIES
        for what in WORKS
    ]


@pytest.mark.parametrize(("folder", "what"), _combinations(), indirect=["folder"])
def test_works_with(what: str, folder: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    wanted = draw(pipe, folder)
    if folder.name == "dit" and what in NOT_FOR_DIT:
        with pytest.raises(ValueError, match=r"does not support group offloading|_repeated_blocks"):
            WORKS[what](pipe)
        return
    WORKS[what](pipe)
    assert (draw(pipe, folder) - wanted).abs().mean() < 1e-3


def test_dequantizing_gives_a_plain_model(folder: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    remove_policy_hook(pipe.transformer)
    wanted = draw(pipe, folder)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.transformer.dequantize()
    assert not quantized_layers(pipe.transformer)
    assert torch.allclose(draw(pipe, folder), wanted, atol=1e-3)


def test_packed_memory_is_that_of_the_file(flux: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(flux, dtype=torch.bfloat16)
    runtime.execute(pipe.transformer, "packed")
    draw(pipe, flux)
    held = {
        t.data_ptr(): t.nbytes
        for module in pipe.transformer.modules()
        for t in vars(module).get("_buffers", {}).values()
    }
    held |= {p.data_ptr(): p.nbytes for p in pipe.transformer.parameters()}
    assert sum(held.values()) <= 1.1 * (flux / "transformer" / WEIGHTS).stat().st_size
    assert all(layer._weight is None for layer in quantized_layers(pipe.transformer).values())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "lack 1 tensors, first .*; copy the folder again"),
        ("shape", r"policy has shape \[2\], expected \[3\]"),
        ("format", "written in format 99"),
        ("layer", "no linear layer 'blocks.7.mlp'"),
        ("extra", "hold 1 that the model does not know, first 'blocks.9.bias'"),
        ("renamed", "lack 1 tensors, first .* and hold 1 that the model does not know"),
        ("truncated", "Unable to load weights from checkpoint file"),
        ("dtype", "is torch.float32, expected torch.bfloat16"),
        ("spec", "unexpected keyword argument 'colour'"),
    ],
)
def test_damage_is_refused_by_name(damage: str, words: str, flux: Path, tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    shutil.copytree(flux / "transformer", folder)
    tensors, config = load_file(folder / WEIGHTS), json.loads((folder / "config.json").read_text())
    name = next(iter(config["quantization_config"]["layers"]))
    if damage == "extra":
        tensors["blocks.9.bias"] = torch.zeros(2)
    elif damage == "renamed":
        tensors[f"{name}.scales"] = tensors.pop(f"{name}.scale")
    elif damage == "missing":
        del tensors[f"{name}.scale"]
    elif damage == "shape":
        tensors[f"{name}.policy"] = tensors[f"{name}.policy"][:-1].clone()
    elif damage == "format":
        config["quantization_config"]["format"] = 99
    elif damage == "layer":
        config["quantization_config"]["layers"]["blocks.7.mlp"] = config["quantization_config"]["layers"][name]
    elif damage == "dtype":
        tensors[f"{name}.scale"] = tensors[f"{name}.scale"].float()
    elif damage == "spec":
        config["quantization_config"]["layers"][name]["colour"] = "red"
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    if damage == "truncated":
        whole = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises((ValueError, OSError), match=words):
        type(DiffusionPipeline.from_pretrained(flux).transformer).from_pretrained(folder)
