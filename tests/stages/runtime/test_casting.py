"""A loaded model cast to another dtype, alone and in the pipelines that are made from its pipeline."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxImg2ImgPipeline
from PIL import Image

from adatsq_pipe.stages import runtime  # noqa: F401  (registers the quantizer)
from adatsq_pipe.stages.runtime.model import quantized_layers
from adatsq_pipe.storage.fingerprint import file_digest
from tests.stages.runtime.folders import quantize

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(tiny_flux, tmp_path_factory.mktemp("cast") / "flux", [1.0, 0.75, 0.5, 0.25])


def changed(pipe: Any, folder: Path) -> torch.Tensor:
    """What an image-to-image pipeline makes of a red picture."""
    call = json.loads((folder.parents[0] / "call.json").read_text())
    given = {"prompt": "a red circle", "image": Image.new("RGB", (16, 16), "red"), "strength": 0.75}
    return torch.as_tensor(pipe(**given, **call, generator=torch.Generator().manual_seed(0), output_type="np")[0])


@pytest.fixture(autouse=True)
def call(folder: Path, tiny_flux: Path) -> None:
    sampling = json.loads((tiny_flux / "sampling.json").read_text())["call"]
    (folder.parents[0] / "call.json").write_text(json.dumps(sampling))


@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_from_pipe_draws_what_the_folder_draws_at_that_dtype(
    loaded: torch.dtype, dtype: torch.dtype | None, folder: Path
) -> None:
    """Without a dtype `from_pipe` casts to float32, whatever was loaded."""
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=loaded)
    made = FluxImg2ImgPipeline.from_pipe(pipe, **({} if dtype is None else {"dtype": dtype}))
    wanted = FluxImg2ImgPipeline.from_pretrained(folder, dtype=dtype or torch.float32)
    if loaded == dtype or dtype is None or loaded == torch.float32:
        for module in ("text_encoder", "text_encoder_2", "vae", "transformer"):
            assert getattr(made, module).dtype == getattr(wanted, module).dtype == (dtype or torch.float32)
    assert changed(made, folder).isfinite().all()
    if loaded == torch.float32:
        assert torch.equal(changed(made, folder), changed(wanted, folder))


def test_casting_changes_no_stored_tensor_and_saves_the_bytes_that_were_loaded(folder: Path, tmp_path: Path) -> None:
    model = DiffusionPipeline.from_pretrained(folder).transformer
    before = {name: copy.deepcopy(dict(layer.named_buffers())) for name, layer in quantized_layers(model).items()}
    for arguments in ((torch.bfloat16,), (torch.float16,), ("cpu", torch.float32), (torch.ones(1).bfloat16(),)):
        assert model.to(*arguments) is model
        assert {p.dtype for p in model.parameters()} == {model.to(*arguments).dtype}
    assert model.to(dtype=torch.float32).dtype == torch.float32 and model.to("cpu") is model
    for name, layer in quantized_layers(model).items():
        assert all(torch.equal(now, before[name][part]) for part, now in layer.named_buffers())
        assert all(now.dtype == before[name][part].dtype for part, now in layer.named_buffers())
    fresh = DiffusionPipeline.from_pretrained(folder).transformer.to(torch.bfloat16)
    fresh.save_pretrained(tmp_path / "transformer")
    assert file_digest(tmp_path / WEIGHTS) == file_digest(folder / WEIGHTS)


def test_a_copy_is_cast_alone(folder: Path) -> None:
    model = DiffusionPipeline.from_pretrained(folder).transformer
    other = copy.deepcopy(model).to(torch.bfloat16)
    assert other.dtype == torch.bfloat16 and model.dtype == torch.float32


def test_modules_that_a_class_keeps_in_float32_stay_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DiffusionPipeline.from_pretrained(folder).transformer
    monkeypatch.setattr(type(model), "_keep_in_fp32_modules", ["proj_out"])
    model.to(torch.bfloat16)
    assert model.proj_out.weight.dtype == torch.float32 and model.x_embedder.weight.dtype == torch.bfloat16
