"""The disk that a plan foresees for cast weights, against the numbers of the model and against a copy that was made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adatsq_pipe.pipeline.commands.plan import text
from adatsq_pipe.pipeline.config import RunConfig, load
from adatsq_pipe.pipeline.estimate.estimate import estimate
from adatsq_pipe.stages.denoiser.castable import kept_in_float32
from adatsq_pipe.storage import cast_copy as module
from tests import tiny

SETS = ("recipe.group_fit=true", "data.count=2", "evaluate.count=2", "model.call.num_inference_steps=2")


def _config(folder: Path, *sets: str) -> RunConfig:
    return load(preset=None, file=None, model=str(folder), previous=None, sets=(*SETS, *sets))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, int]]:
    """A pipeline stored in bfloat16, and how many numbers each of its models has."""
    monkeypatch.setattr(module, "SMALLEST", 0)
    pipe, _ = tiny.flux()
    pipe.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    numbers = {
        path.parent.name: sum(tensor.numel() for tensor in load_file(path).values())
        for path in (tmp_path / "model").glob("*/*.safetensors")
    }
    return tmp_path / "model", numbers


def test_workers_of_a_machine_share_a_copy_of_the_model_and_of_what_is_assembled(
    model: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    folder, numbers = model
    found = estimate(_config(folder, "compute.dtype=float32", "cluster.workers=2"))
    others = sum(count for name, count in numbers.items() if name != "transformer")
    assert others > 0 and found.cast == 4 * (sum(numbers.values()) + others)
    assert found.disk == sum(stage.disk for stage in found.stages) + found.cast
    assert found.plain()["cast"] == found.cast and "workers share cast weights: " in text(found)
    copy = module.cast_copy(
        folder, module.home_of(tmp_path / "run"), dtype="float32", kept=kept_in_float32(folder, "float32")
    )
    assert copy is not None
    headers = 200 * 1000  # a line for each tensor
    assert 0 <= module.cast_bytes(tmp_path / "run") - 4 * sum(numbers.values()) < headers


@pytest.mark.parametrize(
    "sets",
    [
        ("compute.dtype=bfloat16", "cluster.workers=2"),
        ("compute.dtype=float32", "cluster.workers=1"),
        ("compute.dtype=float32", "cluster.executor=inline"),
        ("compute.dtype=float32", "cluster.workers=2", "cluster.gpu_memory=80"),
    ],
)
def test_there_is_no_copy_of_weights_stored_so_nor_for_one_worker_nor_on_a_gpu(
    sets: tuple[str, ...], model: tuple[Path, dict[str, int]]
) -> None:
    found = estimate(_config(model[0], *sets))
    assert found.cast == 0 and "cast" not in text(found)


def test_text_encoders_in_codes_are_not_cast_in_the_assembled_folder(model: tuple[Path, dict[str, int]]) -> None:
    folder, numbers = model
    found = estimate(_config(folder, "compute.dtype=float32", "cluster.workers=2", "text_encoder.bits=8"))
    assert found.cast == 4 * (sum(numbers.values()) + numbers["vae"])


def test_of_configs_alone_the_plan_says_what_it_assumes(model: tuple[Path, dict[str, int]]) -> None:
    for path in model[0].glob("*/*.safetensors"):
        path.unlink()
    found = estimate(_config(model[0], "compute.dtype=float32", "cluster.workers=2"))
    assert found.cast == 0
    assert any("weights are stored in float32; else workers share a copy of them" in line for line in found.assumed)
