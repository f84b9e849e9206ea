"""Whole runs and loaded models on a real GPU; skipped where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import adatsq_pipe.stages.runtime as runtime
from adatsq_pipe.storage import tensors
from tests.stages.runtime.folders import quantize
from tests.stages.runtime.test_families import TIMESTEPS, draw
from tests.whole import harness

pytestmark = [
    pytest.mark.run,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
CUDA = ("--set", "compute.device=cuda")


@pytest.fixture(scope="module")
def on_gpu(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("gpu") / "run"
    done = harness.run(*harness.tiny(run, tiny_flux, *CUDA))
    assert done.returncode == 0, done.stderr
    return run


def grams(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder in run.glob("hessian/*/units/gram/*"):
        found |= tensors.read(folder)
    return found


def test_a_run_on_the_gpu_measures_what_one_on_the_cpu_does(undisturbed: Path, on_gpu: Path) -> None:
    wanted, got = grams(undisturbed), grams(on_gpu)
    assert wanted.keys() == got.keys() and wanted
    for name, gram in wanted.items():
        assert (got[name] - gram).norm() <= 1e-3 * gram.norm(), name
    errors = [
        json.loads((run / "report/summary.json").read_text())["quality"]["latent_error"]["mean"]
        for run in (undisturbed, on_gpu)
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.25)


@pytest.mark.parametrize("share", ["0.5", "auto"])
def test_ray_workers_share_the_gpu(on_gpu: Path, tiny_flux: Path, tmp_path: Path, share: str) -> None:
    """Two by decree, or as many as is measured to fit."""
    run = tmp_path / "run"
    told = ("--set", "cluster.gpus=1", "--set", f"cluster.gpus_per_worker={share}")
    done = harness.run(*harness.tiny(run, tiny_flux, *CUDA, *told, executor="ray"))
    assert done.returncode == 0, done.stderr
    harness.same(run, on_gpu)


def test_blocks_take_turns_on_the_gpu(on_gpu: Path, tiny_flux: Path, tmp_path: Path) -> None:
    """With less memory than the model needs, the GPU holds a block at a time: the same bytes, in a second run."""
    run = tmp_path / "run"
    done = harness.run(*harness.tiny(run, tiny_flux, *CUDA, "--set", "cluster.gpu_memory=2e-4"))
    assert done.returncode == 0, done.stderr
    assert "take turns" in done.stdout + done.stderr
    harness.same(run, on_gpu)


@pytest.mark.parametrize("name", ["z-image", "wan", "dit"])
def test_other_families_run_through(name: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    labels = ["--set", "data.prompts=['1', '2', '3']", "--set", "evaluate.prompts=['4']"] if name == "dit" else []
    done = harness.run(*harness.tiny(run, family(name), *CUDA, *labels))
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads((run / "report/summary.json").read_text())["quality"]["latent_error"]["mean"] < 1


@pytest.fixture(scope="module")
def folder(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(tiny_flux, tmp_path_factory.mktemp("quantized") / "flux", TIMESTEPS["flux"])


def _group_offload(pipe: Any, **how: Any) -> None:
    pipe.to("cuda")
    pipe.transformer.enable_group_offload(onload_device=torch.device("cuda"), offload_device=torch.device("cpu"), **how)


WORKS: dict[str, Callable[[Any], Any]] = {
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(),
    "sequential offload": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "group offload, by block": lambda pipe: _group_offload(pipe, offload_type="block_level", num_blocks_per_group=1),
    "group offload, by leaf": lambda pipe: _group_offload(pipe, offload_type="leaf_level", use_stream=True),
    "compiled blocks": lambda pipe: (pipe.to("cuda"), pipe.transformer.compile_repeated_blocks(fullgraph=True)),
    "compiled model": lambda pipe: (pipe.to("cuda"), pipe.transformer.compile()),
}


@pytest.mark.parametrize("execution", ["simulate", "packed"])
@pytest.mark.parametrize("way", WORKS)
def test_a_quantized_pipeline_under_what_users_do_with_a_gpu(folder: Path, way: str, execution: str) -> None:
    """The picture is that of the CPU's definition, but for roundings that a float's last bit flips."""
    wanted = DiffusionPipeline.from_pretrained(folder)
    runtime.execute(wanted.transformer, "reference")
    pipe = DiffusionPipeline.from_pretrained(folder)
    runtime.execute(pipe.transformer, execution)
    WORKS[way](pipe)
    assert (draw(pipe, folder) - draw(wanted, folder)).abs().mean() < 2e-2


@pytest.mark.parametrize("name", ["flux", "z-image", "wan", "dit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_draws_by_the_kernels(
    name: str, dtype: torch.dtype, family: Callable[[str], Path], tmp_path: Path
) -> None:
    made = quantize(family(name), tmp_path / name, TIMESTEPS[name])
    pipe, drawn = DiffusionPipeline.from_pretrained(made, dtype=dtype).to("cuda"), {}
    for execution in runtime.EXECUTIONS:
        runtime.execute(pipe.transformer, execution)
        drawn[execution] = draw(pipe, made)
    for execution in runtime.EXECUTIONS[1:]:
        assert drawn[execution].isfinite().all()
        assert (drawn[execution] - drawn["reference"]).abs().mean() < (1e-2 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("execution", ["simulate", "packed"])
@pytest.mark.parametrize("offload_first", [True, False])
def test_a_lora_on_the_gpu_draws_as_on_the_cpu(folder: Path, execution: str, offload_first: bool) -> None:
    pytest.importorskip("peft")
    # Without peft this module is skipped, and whoever imports it.
    from tests.stages.runtime.test_lora import linears, lora_for

    lora, wanted = lora_for(linears(folder)), DiffusionPipeline.from_pretrained(folder)
    runtime.execute(wanted.transformer, "reference")
    wanted.load_lora_weights(lora)
    pipe = DiffusionPipeline.from_pretrained(folder)
    runtime.execute(pipe.transformer, execution)
    if offload_first:
        pipe.enable_model_cpu_offload()
        pipe.load_lora_weights(lora)
    else:
        pipe.load_lora_weights(lora)
        pipe.to("cuda")
    assert (draw(pipe, folder) - draw(wanted, folder)).abs().mean() < 2e-2
