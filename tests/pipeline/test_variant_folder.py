"""A variant of a model's weights: what diffusers loads from the links, against the weights that were saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel
from huggingface_hub import constants
from safetensors.torch import save_file

from adatsq_pipe.pipeline import config
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.variant_folder import plain_name
from adatsq_pipe.stages.architecture import support
from adatsq_pipe.storage.checkpoint import stored_dtype
from adatsq_pipe.storage.model_files import copied_files

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def halved(tmp_path: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder whose transformer has a variant fp16 beside its weights, and the tensors of that: the others' halves."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    folder = shutil.copytree(tiny_flux, tmp_path / "flux")
    whole = FluxTransformer2DModel.from_pretrained(folder / "transformer").state_dict()
    tensors = {name: (value / 2).half() for name, value in whole.items()}
    save_file(tensors, folder / f"transformer/{WEIGHTS}.fp16.safetensors")
    return folder, tensors


def _same(loaded: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return loaded.keys() == wanted.keys() and all(torch.equal(loaded[name], wanted[name]) for name in wanted)


def test_the_variant_is_loaded_where_a_component_has_it(halved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, tensors = halved
    links = config.model_folder(str(folder), "fp16")
    pipe = DiffusionPipeline.from_pretrained(links, dtype=torch.float16, local_files_only=True)
    plain = DiffusionPipeline.from_pretrained(folder, dtype=torch.float16, local_files_only=True)
    assert _same(pipe.transformer.state_dict(), tensors)
    assert _same(pipe.vae.state_dict(), plain.vae.state_dict())
    assert stored_dtype(links) == "float16" and stored_dtype(folder) == "float32"
    support.check_pipeline(links)
    assert copied_files(links) == copied_files(folder), "the names that every reader expects"


def test_shards_of_a_variant_are_loaded(halved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, tensors = halved
    (folder / f"transformer/{WEIGHTS}.fp16.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"{WEIGHTS}.fp16-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for file, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, folder / "transformer" / file)
    where = {name: file for file, inside in parts.items() for name in inside}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / f"transformer/{WEIGHTS}.safetensors.index.fp16.json").write_text(json.dumps(index))
    links = config.model_folder(str(folder), "fp16")
    pipe = DiffusionPipeline.from_pretrained(links, dtype=torch.float16, local_files_only=True)
    assert _same(pipe.transformer.state_dict(), tensors)


def test_the_links_follow_the_folder(halved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, _ = halved
    links = config.model_folder(str(folder), "fp16")
    (folder / "NOTICE").write_text("as is")
    assert config.model_folder(str(folder), "fp16") == links and (links / "NOTICE").read_text() == "as is"
    (folder / "NOTICE").unlink()
    config.model_folder(str(folder), "fp16")
    assert not (links / "NOTICE").is_symlink()


def test_a_variant_that_no_component_has_is_refused(halved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    with pytest.raises(ConfigError, match=r"model.variant is 'bf16', and no component of .*its variants: fp16"):
        config.model_folder(str(halved[0]), "bf16")
    with pytest.raises(ConfigError, match=r"model.variant: .*pattern"):
        config.load(preset=None, file=None, sets=("model.variant='../x'",), model=str(halved[0]), previous=None)


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors"),
        ("text_encoder/model.fp16.safetensors", "text_encoder/model.safetensors"),
        ("text_encoder/pytorch_model.fp16.bin", "text_encoder/pytorch_model.bin"),
        ("t/model.safetensors.index.fp16.json", "t/model.safetensors.index.json"),
        ("t/model.safetensors.fp16.index.json", "t/model.safetensors.index.json"),
        ("t/model.fp16-00001-of-00002.safetensors", "t/model.fp16-00001-of-00002.safetensors"),
        ("t/config.fp16.json", "t/config.fp16.json"),
    ],
)
def test_the_name_that_is_read(file: str, read: str) -> None:
    assert plain_name(file, "fp16") == read
