"""How many workers share a GPU, from numbers that are made up, and from a tiny model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adatsq_pipe.pipeline import placement
from adatsq_pipe.pipeline.placement import Need
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.run_settings import ModelRef, RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings, DataSettings
from adatsq_pipe.stages.base.survey import LayerInfo, Survey
from adatsq_pipe.storage.checkpoint import stored_sizes

GB = 10**9
ROW = {"name": "a", "source": "a", "in": 10, "out": 20, "macs": 7 * 10 * 20}


def _survey(*rows: dict[str, Any]) -> dict[str, Any]:
    layers = tuple(LayerInfo.from_plain(row) for row in rows)
    nothing: tuple[str, ...] = ()
    return Survey(
        layers=layers, unused=nothing, repeated=nothing, step_of_call=(0,), timesteps=(1.0,), parameters=400
    ).plain()


def _context(run: Path, model: Path) -> Context:
    settings = RunSettings([ComputeSettings(dtype="bfloat16"), DataSettings(batch=3)])
    prints = {stage: 2 * f"{i}" * 32 for i, stage in enumerate(("capture", "fisher"), 1)}
    return Context(settings=settings, run=str(run), model=ModelRef(path=model), fingerprints=prints)


@pytest.mark.parametrize(
    ("weights", "unit", "memory", "workers"),
    [(24, 8, 80, 2), (24, 8, 141, 3), (24, 8, 40, 1), (24, 50, 80, 1), (1, 1, 80, 4)],
)
def test_as_many_as_fit(weights: int, unit: int, memory: int, workers: int) -> None:
    found = placement.place(Need(weights=weights * GB, unit=unit * GB, basis="made up"), memory * GB)
    assert found.workers == workers
    assert found.share * workers <= 1 < found.share * (workers + 1), "all of them fit, and no other does"
    assert found.record() == {
        "workers_per_gpu": workers, "gpu_memory": memory * GB, "weights": weights * GB, "unit": unit * GB,
        "basis": "made up",
    }  # fmt: skip


def test_a_whole_gpu_until_something_is_known_then_the_survey_then_what_was_measured(
    tiny_flux: Path, tmp_path: Path
) -> None:
    context = _context(tmp_path, tiny_flux)
    assert placement.need_of(context, "fisher") is None
    assert placement.place(None, 80 * GB).record()["basis"] == "nothing is measured yet"

    capture = context.manifest("capture")
    capture.open_unit("survey")
    shared = {**ROW, "name": "b"}
    capture.commit("survey", value=_survey(ROW, shared))
    weights = 2 * sum(sum(part.values()) for part in stored_sizes(tiny_flux).values())
    guessed = placement.need_of(context, "fisher")
    assert guessed == Need(weights=weights, unit=2 * 3 * 2 * 7 * (10 + 20 + 20), basis="estimated from the survey")

    fisher = context.manifest("fisher")
    for unit, peak in (("scores/0", weights + 5 * GB), ("scores/1", weights + 3 * GB), ("scores/2", 0)):
        fisher.open_unit(unit)
        fisher.commit(unit, peak=peak)
    assert placement.need_of(context, "fisher") == Need(weights=weights, unit=5 * GB, basis="measured in 2 units")


def test_stored_sizes_are_those_of_the_parts_that_are_opened(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"transformer": ["diffusers", "X"], "gone": [null, null], "n": 3}')
    weights = "diffusion_pytorch_model"
    names = {f"transformer/{weights}": (3, 4), f"transformer/{weights}.fp16": (3, 4), f"gone/{weights}": (9,)}
    for name, shape in names.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file({"w": torch.zeros(shape), "s": torch.zeros(())}, tmp_path / f"{name}.safetensors")
    assert sum(sum(part.values()) for part in stored_sizes(tmp_path).values()) == 13
