"""Model folders, made by hand with safetensors and numpy, and read back with them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from adatsq_pipe.storage.checkpoint import (
    find_pipeline,
    stored_sizes,
    stored_tensors,
    weight_shapes,
    write_component,
    write_pipeline,
)
from adatsq_pipe.storage.errors import NoTransformer, StorageError

INDEX = {
    "_class_name": "FluxPipeline",
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for part in ("transformer", "vae", "safety_checker", "unused", ".cache"):
        (folder / part).mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    (folder / "transformer" / "config.json").write_text('{"layers": 2, "quantization_config": {"bits": 8}}')
    name = "diffusion_pytorch_model-0000{}-of-00002.safetensors"
    save_file({"b.weight": np.ones((2, 3), "f4"), "b.bias": np.ones(2, "f4")}, folder / "transformer" / name.format(1))
    save_file({"a.weight": np.full((4, 5), 2, "f4")}, folder / "transformer" / name.format(2))
    index = {
        "metadata": {},
        "weight_map": {"b.weight": name.format(1), "b.bias": name.format(1), "a.weight": name.format(2)},
    }
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "vae" / "config.json").write_text("{}")
    save_file({"w": np.ones(7, "f2")}, folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({"v": np.ones(7, "f2")}, folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    save_file({"v": np.ones(7, "f2")}, folder / "vae" / "model.safetensors.index.safetensors")
    save_file({"w": np.ones(9, "f2")}, folder / "safety_checker" / "model.safetensors")
    save_file({"w": np.ones(9, "f2")}, folder / "unused" / "model.safetensors")
    for file in ("README.md", "training.json", "curve.png", "loss.csv", "sampling.json", ".gitattributes", "vae/.x"):
        (folder / file).write_text(f"{file} of the original")
    return folder


def test_a_pipeline_folder_is_its_index(model: Path) -> None:
    assert find_pipeline(model) == INDEX


def test_a_folder_that_is_no_pipeline_is_refused_with_the_reason(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not a folder"):
        find_pipeline(tmp_path / "nowhere")
    with pytest.raises(StorageError, match=r"has no model_index\.json"):
        find_pipeline(tmp_path)
    (tmp_path / "snapshots" / "0ef5").mkdir(parents=True)
    (tmp_path / "snapshots" / "0ef5" / "model_index.json").touch()
    with pytest.raises(
        StorageError, match=r"no diffusers pipeline folder; the hub's cache has it in .*/snapshots/0ef5"
    ):
        find_pipeline(tmp_path)
    (model / "model_index.json").unlink()
    os.mkfifo(model / "model_index.json")
    with pytest.raises(StorageError, match="is no file"):
        find_pipeline(model)
    (model / "model_index.json").unlink()
    (model / "model_index.json").write_text("{")
    with pytest.raises(StorageError, match="is no JSON object"):
        find_pipeline(model)


@pytest.mark.parametrize("gone", ["named", "folder"])
def test_a_pipeline_without_a_transformer_says_what_it_has(gone: str, model: Path) -> None:
    if gone == "named":
        (model / "model_index.json").write_text(json.dumps({"_class_name": "X", "vae": ["d", "V"], "unet": ["d", "U"]}))
    else:
        (model / "transformer").rename(model / "unet")
    with pytest.raises(NoTransformer, match="unet, vae" if gone == "named" else "safety_checker, transformer, vae"):
        find_pipeline(model)


def test_a_quantized_copy_has_the_other_parts_and_none_of_the_originals_story(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    tensors = {"z": torch.ones(2, 3).bfloat16().T, "a": torch.tensor([1, 2], dtype=torch.uint8)}
    write_pipeline(model, target, tensors=tensors, quantization_config={"bits": 4}, card="a card")
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()) == [
        "README.md",
        "model_index.json",
        "sampling.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert (target / "README.md").read_text() == "a card"
    assert (target / "transformer/config.json").read_text() == (
        '{\n  "layers": 2,\n  "quantization_config": {\n    "bits": 4\n  }\n}\n'
    )
    weights = target / "transformer/diffusion_pytorch_model.safetensors"
    with safe_open(weights, framework="pt") as file:
        assert sorted(file.keys()) == ["a", "z"] and file.metadata() == {"format": "pt"}
        assert file.get_tensor("z").dtype == torch.bfloat16 and file.get_tensor("z").shape == (3, 2)
    again = tmp_path / "again"
    again.mkdir()
    write_pipeline(model, again, tensors=dict(reversed(tensors.items())), quantization_config=None, card="a card")
    assert (again / "transformer/diffusion_pytorch_model.safetensors").read_bytes() == weights.read_bytes()
    assert json.loads((again / "transformer/config.json").read_text()) == {"layers": 2}


def test_a_part_replaces_the_one_that_was_there(model: Path, tmp_path: Path) -> None:
    (tmp_path / "target" / "vae").mkdir(parents=True)
    (tmp_path / "target" / "vae" / "of-before").touch()
    (model / "vae" / "config.json").write_text("{}")
    write_component(model, tmp_path / "target", part="vae", tensors={"w": torch.ones(1)}, quantization_config=None)
    names = {path.name for path in (tmp_path / "target" / "vae").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_the_transformer_is_read_from_all_its_shards(model: Path) -> None:
    tensors = {name: tensor.load() for name, tensor in stored_tensors(model).items()}
    assert {name: (tuple(x.shape), float(x.flatten()[0])) for name, x in tensors.items()} == {
        "a.weight": ((4, 5), 2.0),
        "b.weight": ((2, 3), 1.0),
        "b.bias": ((2,), 1.0),
    }
    with pytest.raises(StorageError, match="has no transformer_2"):
        stored_tensors(model, "transformer_2")


def test_weights_of_a_variant_beside_the_plain_ones_are_not_read(model: Path) -> None:
    for number in (1, 2):
        name = f"diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors"
        tensors = {
            "a.weight": np.full((4, 5), 7, "f2"),
            "b.weight": np.full((2, 3), 7, "f2"),
            "b.bias": np.full(2, 7, "f2"),
        }
        save_file(tensors, model / "transformer" / name)
    save_file({"a.weight": np.full((4, 6), 8, "f4")}, model / "transformer" / "diffusion_pytorch_model.safetensors")
    tensors = {name: float(tensor.load().flatten()[0]) for name, tensor in stored_tensors(model).items()}
    assert tensors == {"a.weight": 2.0, "b.weight": 1.0, "b.bias": 1.0}
    assert weight_shapes(model) == {"a": (4, 5), "b": (2, 3)}
    assert stored_sizes(model)["transformer"] == {"a.weight": 20, "b.bias": 2, "b.weight": 6}


def test_weights_in_torchs_own_format_are_read_as_tensors_and_run_no_code(model: Path, tmp_path: Path) -> None:
    for path in (model / "transformer").glob("diffusion_pytorch_model*"):
        path.unlink()
    path = model / "transformer" / "diffusion_pytorch_model.bin"
    torch.save({"a.weight": torch.full((4, 5), 3.0).bfloat16(), "step": 7}, path)
    (lazy,) = stored_tensors(model).values()
    read = lazy.load()
    assert (lazy.shape, lazy.dtype, lazy.nbytes) == ((4, 5), torch.bfloat16, 40)
    assert read.dtype == torch.bfloat16 and torch.equal(read, torch.full((4, 5), 3.0).bfloat16())
    assert weight_shapes(model) == {"a": (4, 5)} and stored_sizes(model)["transformer"] == {"a.weight": 20}
    torch.save({"a.weight": torch.full((4, 5), 3.0)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(stored_tensors(model)["a.weight"].load(), torch.full((4, 5), 3.0)), "files from before torch 1.6"
    assert weight_shapes(model) == {"a": (4, 5)}
    whole = path.read_bytes()
    for damaged in (whole[:100], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        for reader in (stored_tensors, stored_sizes, weight_shapes):
            with pytest.raises(StorageError, match=r"diffusion_pytorch_model\.bin does not load"):
                reader(model)
    torch.save({"a.weight": tmp_path}, path)
    with pytest.raises(StorageError, match="does not load"):
        stored_tensors(model)


@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077])
def test_weights_have_the_mode_that_any_new_file_has(umask: int, model: Path, tmp_path: Path) -> None:
    for path in (*model.rglob("*"), model):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = os.umask(umask)
    try:
        write_pipeline(model, tmp_path, tensors={"a": torch.ones(2)}, quantization_config=None, card="a card")
        paths = [tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", *tmp_path.glob("[!m]*/*")]
        paths += [tmp_path / "README.md", tmp_path / "model_index.json"]
        assert len(paths) == 7 and {path.stat().st_mode & 0o777 for path in paths} == {0o666 & ~umask}
        assert (tmp_path / "vae").stat().st_mode & 0o777 == 0o777 & ~umask
        write_component(model, tmp_path, part="transformer", tensors={"a": torch.ones(2)}, quantization_config=None)
        shutil.rmtree(tmp_path / "vae")
    finally:
        os.umask(before)
        for path in (model, *model.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_sizes_are_numbers_by_tensor_of_the_parts_that_are_loaded(model: Path) -> None:
    assert stored_sizes(model) == {"transformer": {"a.weight": 20, "b.bias": 2, "b.weight": 6}, "vae": {"w": 7}}


def test_shapes_are_those_of_the_weights_by_module(model: Path) -> None:
    assert weight_shapes(model) == {"a": (4, 5), "b": (2, 3)}


def test_a_damaged_file_of_weights_is_named(model: Path) -> None:
    path = model / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    for reader in (stored_tensors, stored_sizes, weight_shapes):
        with pytest.raises(StorageError, match="00001-of-00002"):
            reader(model)
