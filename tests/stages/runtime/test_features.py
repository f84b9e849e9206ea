"""What users do with a loaded pipeline, on a quantized one: each row of the table works, or says what to do."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image
from torch import distributed

from adatsq_pipe.stages.runtime import execute
from adatsq_pipe.stages.runtime.model import quantized_layers
from tests.stages.runtime.folders import quantize

CPU = torch.device("cpu")
ON_DISK = {
    "": "cpu",
    **dict.fromkeys(("transformer_blocks", "single_transformer_blocks"), "disk"),
}
executions = pytest.mark.parametrize("execution", ["simulate", "packed"])


@pytest.fixture(scope="module")
def folder(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(tiny_flux, tmp_path_factory.mktemp("features") / "flux", [1.0, 0.75, 0.5, 0.25])


def load(folder: Path, execution: str, **how: Any) -> Any:
    pipe = FluxPipeline.from_pretrained(folder, **how)
    pipe.set_progress_bar_config(disable=True)
    execute(pipe.transformer, execution)
    return pipe


def draw(pipe: Any, folder: Path) -> torch.Tensor:
    call = json.loads((folder / "sampling.json").read_text())["call"]
    made = pipe("a red circle", **call, generator=torch.Generator().manual_seed(0), output_type="np")
    return torch.as_tensor(made[0])


def _components(pipe: Any, folder: Path, tmp: Path) -> Any:
    other = FluxImg2ImgPipeline(**pipe.components)
    call = json.loads((folder / "sampling.json").read_text())["call"]
    picture = Image.new("RGB", (16, 16), "red")
    changed = other("a red circle", image=picture, strength=0.75, **call, output_type="np")[0]
    assert torch.as_tensor(changed).isfinite().all()
    return pipe


def _from_pipe(pipe: Any, folder: Path, tmp: Path) -> Any:
    return FluxPipeline.from_pipe(FluxImg2ImgPipeline.from_pipe(pipe))


def _wrapped(pipe: Any, folder: Path, tmp: Path) -> Any:
    inner = pipe.transformer.forward
    pipe.transformer.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    return pipe


def _in_inference_mode(pipe: Any, folder: Path, tmp: Path) -> Any:
    with torch.inference_mode():
        return load(folder, pipe.transformer.transformer_blocks[0].attn.to_q.execution)


def _cast_after_inference_mode(pipe: Any, folder: Path, tmp: Path) -> Any:
    """bfloat16 holds what the folder's transformer is stored in."""
    made = _in_inference_mode(pipe, folder, tmp)
    made.transformer.to(torch.bfloat16).to(torch.float32)
    return made


def _as_bin(pipe: Any, folder: Path, tmp: Path) -> Any:
    pipe.save_pretrained(tmp, safe_serialization=False)
    assert not list((tmp / "transformer").glob("*.safetensors"))
    return load(tmp, pipe.transformer.transformer_blocks[0].attn.to_q.execution)


def _with_transformer(pipe: Any, transformer: Any) -> Any:
    execute(transformer, pipe.transformer.transformer_blocks[0].attn.to_q.execution)
    pipe.transformer = transformer
    return pipe


def _mapped(device_map: object) -> Callable[[Any, Path, Path], Any]:
    return lambda pipe, folder, tmp: _with_transformer(
        pipe, type(pipe.transformer).from_pretrained(folder / "transformer", device_map=device_map)
    )


def _balanced(pipe: Any, folder: Path, tmp: Path) -> Any:
    return load(folder, pipe.transformer.transformer_blocks[0].attn.to_q.execution, device_map="balanced")


def _method(name: str, *rest: str) -> Callable[[Any, Path, Path], Any]:
    def use(pipe: Any, folder: Path, tmp: Path) -> Any:
        for each in (name, *rest):
            getattr(pipe.transformer, each)()
        return pipe

    return use


def _group_to_disk(pipe: Any, folder: Path, tmp: Path) -> Any:
    pipe.transformer.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="leaf_level", offload_to_disk_path=str(tmp)
    )
    assert list(tmp.iterdir()), "its groups lie on disk"
    return pipe


def _group_of_pipeline(pipe: Any, folder: Path, tmp: Path) -> Any:
    pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    return pipe


def _model_offload(pipe: Any, folder: Path, tmp: Path) -> Any:
    pipe.enable_model_cpu_offload(device="cpu")
    return pipe


def _layerwise(pipe: Any, folder: Path, tmp: Path) -> Any:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    for layer in quantized_layers(pipe.transformer).values():
        assert torch.float8_e4m3fn not in {tensor.dtype for tensor in layer.buffers()}
    return pipe


def _compiled(pipe: Any, folder: Path, tmp: Path) -> Any:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    return pipe


def _copied(pipe: Any, folder: Path, tmp: Path) -> Any:
    draw(pipe, folder)
    return copy.deepcopy(pipe)


def _pickled(pipe: Any, folder: Path, tmp: Path) -> Any:
    return _with_transformer(pipe, pickle.loads(pickle.dumps(pipe.transformer)))  # noqa: S301 - its own bytes


def _state(pipe: Any, folder: Path, tmp: Path) -> Any:
    file = io.BytesIO()
    torch.save(pipe.transformer.state_dict(), file)
    file.seek(0)
    other = load(folder, pipe.transformer.transformer_blocks[0].attn.to_q.execution)
    for tensor in (*other.transformer.parameters(), *other.transformer.buffers()):
        tensor.data.zero_()
    other.transformer.load_state_dict(torch.load(file, weights_only=True))
    return other


def _distributed(pipe: Any, folder: Path, tmp: Path) -> Any:
    """A call through DistributedDataParallel in the place of the model's own."""
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        inner = pipe.transformer
        outer = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(inner))
        inner.forward = outer.forward
        draw(pipe, folder)
    finally:
        distributed.destroy_process_group()
    return pipe


LOOSE = {"layerwise casting to fp8": 2e-2, "group offload to disk": 1e-5}
"""Mean difference of pictures that is allowed: fp8 rounds what is not quantized."""
WORKS: dict[str, Callable[[Any, Path, Path], Any]] = {
    "FluxImg2ImgPipeline(**pipe.components)": _components,
    "from_pipe": _from_pipe,
    "device_map=balanced": _balanced,
    "transformer, device_map=auto": _mapped("auto"),
    "transformer, device_map of cpu": _mapped({"": "cpu"}),
    "wrapped forward": _wrapped,
    "loaded in inference_mode": _in_inference_mode,
    "loaded in inference_mode, then cast": _cast_after_inference_mode,
    "safe_serialization=False": _as_bin,
    "layerwise casting to fp8": _layerwise,
    "group offload to disk": _group_to_disk,
    "group offload of the pipeline": _group_of_pipeline,
    "enable_model_cpu_offload": _model_offload,
    "torch.compile(transformer)": _compiled,
    "half, then float": _method("half", "float"),
    "bfloat16, then float": _method("bfloat16", "float"),
    "train": _method("train"),
    "gradient checkpointing": _method("enable_gradient_checkpointing"),
    "deepcopy of the pipeline": _copied,
    "pickle": _pickled,
    "state_dict": _state,
    "DistributedDataParallel": _distributed,
}


@executions
@pytest.mark.parametrize(
    "what", [pytest.param(name, marks=[pytest.mark.run] if "compile" in name else []) for name in WORKS]
)
def test_it_draws_the_same(what: str, execution: str, folder: Path, tmp_path: Path) -> None:
    pipe = load(folder, execution)
    wanted = draw(pipe, folder)
    made = WORKS[what](load(folder, execution), folder, tmp_path)
    made.set_progress_bar_config(disable=True)
    assert (draw(made, folder) - wanted).abs().mean() <= LOOSE.get(what, 0.0)


REFUSED: dict[str, tuple[Callable[[Any, Path, Path], Any], str]] = {
    "fuse_qkv_projections": (
        lambda pipe, folder, tmp: pipe.transformer.fuse_qkv_projections(),
        r"leave fuse_qkv_projections out, or call dequantize\(\)",
    ),
    "device_map with disk": (
        lambda pipe, folder, tmp: type(pipe.transformer).from_pretrained(
            folder / "transformer", device_map=ON_DISK, offload_folder=tmp
        ),
        "put them on 'cpu', or load without device_map and call enable_group_offload",
    ),
    "device_map=auto that ends on disk": (
        lambda pipe, folder, tmp: type(pipe.transformer).from_pretrained(
            folder / "transformer", device_map="auto", max_memory={"cpu": "40KB"}, offload_folder=tmp
        ),
        "put them on 'cpu', or load without device_map and call enable_group_offload",
    ),
    "low_cpu_mem_usage=False": (
        lambda pipe, folder, tmp: FluxPipeline.from_pretrained(folder, low_cpu_mem_usage=False),
        "cannot be False or None when using quantization",
    ),
}


@executions
@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_one_line_and_changes_nothing(what: str, execution: str, folder: Path, tmp_path: Path) -> None:
    pipe = load(folder, execution)
    wanted = draw(pipe, folder)
    use, words = REFUSED[what]
    with pytest.raises(ValueError, match=words) as caught:
        use(pipe, folder, tmp_path)
    assert "\n" not in str(caught.value)
    assert torch.equal(draw(pipe, folder), wanted)


def test_dequantized_projections_can_be_fused(folder: Path) -> None:
    pipe = load(folder, "simulate")
    pipe.transformer.dequantize()
    wanted = draw(pipe, folder)
    pipe.transformer.fuse_qkv_projections()
    assert torch.allclose(draw(pipe, folder), wanted, atol=1e-4)


def test_a_folder_of_bin_files_is_saved_in_the_dtypes_it_was_stored_in(folder: Path, tmp_path: Path) -> None:
    pipe = load(folder, "simulate")
    pipe.save_pretrained(tmp_path / "bin", safe_serialization=False)
    again = load(tmp_path / "bin", "packed")
    again.transformer.to(torch.float32).save_pretrained(tmp_path / "again")
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (folder / "transformer" / name).read_bytes()


def test_nothing_that_was_loaded_in_inference_mode_stays_in_it(folder: Path) -> None:
    with torch.inference_mode():
        model = FluxPipeline.from_pretrained(folder).transformer
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
