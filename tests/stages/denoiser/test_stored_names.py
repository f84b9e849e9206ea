"""A model's files and the names in them, as people find them: incomplete, scaled, with an adapter, with leftovers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from adatsq_pipe.stages.base.errors import NotTaken
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.stored_names import check_names, ignored

LAYER = "transformer_blocks.0.attn.to_q"


def _with(source: Path, folder: Path, more: Mapping[str, Tensor | None]) -> Path:
    """The pipeline, with more tensors in its transformer's file, or without those that are None."""
    shutil.copytree(source, folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    stored: dict[str, Tensor | None] = {**load_file(path), **more}
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, path, metadata={"format": "pt"})
    return folder


def _check(folder: Path) -> None:
    check_names(folder, {"transformer": FluxTransformer2DModel.from_pretrained(folder / "transformer")})


def test_a_model_whose_files_hold_its_tensors_is_taken(tiny_flux: Path) -> None:
    _check(tiny_flux)


@pytest.mark.parametrize("beside", ["weight_scale", "scale_weight", "weight_scale_inv", "lora_A.weight", "qweight"])
def test_a_tensor_beside_a_weight_is_refused_where_diffusers_ignores_it(
    beside: str, tiny_flux: Path, tmp_path: Path
) -> None:
    folder = _with(tiny_flux, tmp_path / "model", {f"{LAYER}.{beside}": torch.ones(1)})
    with pytest.raises(NotTaken, match=rf"hold '{LAYER}\.{beside}' beside a layer's weight.*give plain weights"):
        _check(folder)


def test_a_file_that_lacks_a_tensor_is_refused_when_it_is_opened(tiny_flux: Path, tmp_path: Path) -> None:
    folder = _with(tiny_flux, tmp_path / "model", {"proj_out.bias": None, f"{LAYER}.bias": None})
    words = r"lack 2 tensors of FluxTransformer2DModel, first 'proj_out\.bias'; copy the model folder again"
    with pytest.raises(NotTaken, match=words):
        Denoiser(str(folder), dtype="float32", device="cpu", call={})


def test_leftovers_that_diffusers_ignores_are_taken(tiny_flux: Path, tmp_path: Path) -> None:
    _check(_with(tiny_flux, tmp_path / "model", {"ema.decay": torch.ones(1), "blocks.0.q.weight": torch.ones(1)}))


def test_what_a_class_expects_in_its_files_is_no_leftover(tiny_flux: Path) -> None:
    model = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    model._keys_to_ignore_on_load_unexpected = [r"^norm_added"]
    assert ignored(model, ["norm_added_q.weight", "proj_out.weight", "ema"]) == {"ema"}
