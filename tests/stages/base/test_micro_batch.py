"""Micro-batches: a call in parts gives what the whole gives, whatever the family's inputs and outputs look like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.micro_batch import MicroBatch, OutOfMemory, OutOfMemoryBackoff, cut, joined
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.outputs import leaves, structure
from tests.conftest import FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_make_the_whole(name: str, family: Callable[[str], Path]) -> None:
    call = json.loads((family(name) / "sampling.json").read_text())["call"]
    denoiser = Denoiser(str(family(name)), dtype="float32", device="cpu", call=call)
    prompts = ("207", "3", "8") if name == "dit" else ("a red circle", "a blue square", "a white cross")
    batch = Conditions(prompts=prompts, seeds=(5, 6, 7))
    whole = denoiser.record(batch, decode=True)
    assert denoiser.micro.reduction() is None
    rows = 6 if name in ("dit", "z-image") else 3
    assert denoiser.micro.largest_batch == rows, "guided samples lie twice in a call"

    denoiser.micro = MicroBatch(size=2)
    parts = denoiser.record(batch, decode=True)
    assert denoiser.micro.reduction() == {"from": rows, "to": 2}
    for got, wanted in zip(parts.outputs, whole.outputs, strict=True):
        assert structure(got) == structure(wanted)
        for x, y in zip(leaves(got), leaves(wanted), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(parts.pictures, whole.pictures, rtol=1e-3, atol=1e-3)


def test_what_samples_share_is_passed_on_whole() -> None:
    table, rows = torch.zeros(7, 3), torch.arange(4.0).reshape(4, 1)
    assert cut(table, 4, 1, 3) is table and cut("text", 4, 1, 3) == "text"
    assert cut({"x": (rows, table)}, 4, 1, 3)["x"][0].flatten().tolist() == [1, 2]
    assert [x.item() for x in cut(list(rows), 4, 1, 3)] == [1, 2], "a list with a tensor a sample"
    assert [len(x) for x in cut([rows] * 4, 4, 1, 3)] == [2] * 4, "a list of batches, as many as there are samples"


def test_outputs_that_cannot_be_joined_are_an_error() -> None:
    with pytest.raises(StageError, match=r"shape \[3\] for 2 samples; set data.batch"):
        joined([torch.zeros(2), torch.zeros(3)], [2, 2])


def test_only_a_lack_of_memory_halves_and_one_sample_is_the_end() -> None:
    worker = OutOfMemoryBackoff()
    worker.micro.ranges(5)
    assert not worker.recover("u", RuntimeError("CUDA error")) and worker.micro.size is None
    sizes = []
    for _ in range(3):
        assert worker.recover("u", torch.OutOfMemoryError("CUDA out of memory."))
        sizes.append(worker.micro.size)
    assert sizes == [3, 2, 1] and worker.micro.ranges(5) == [(i, i + 1) for i in range(5)]
    with pytest.raises(OutOfMemory, match="unit 'u' does not fit with one sample at a time"):
        worker.recover("u", torch.OutOfMemoryError("CUDA out of memory."))


def test_weights_that_do_not_fit_are_an_error(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, device: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr(DiffusionPipeline, "to", full)
    with pytest.raises(OutOfMemory, match=r"flux in float32 do not fit into cpu \(CUDA out .*9.00 GiB.\); give each"):
        Denoiser(str(tiny_flux), dtype="float32", device="cpu", call={})
