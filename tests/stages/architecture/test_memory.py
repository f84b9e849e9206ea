"""The memory plan: what is counted as a block, and what follows where it does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adatsq_pipe.stages.architecture import memory
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.storage.checkpoint import stored_sizes

SIZES = {
    "transformer": {"blocks.0.a.weight": 300, "blocks.0.list.1.weight": 100, "blocks.1.a.weight": 300, "embed": 50},
    "text_encoder": {"encoder.block.0.layer.0.x.weight": 200, "encoder.block.0.layer.1.x.weight": 250, "shared": 20},
    "vae": {"conv.weight": 30},
}
ROWS = [
    {"name": "blocks.0.a", "source": "blocks.0.a", "in": 4, "out": 6, "macs": 24 * 10},
    {"name": "blocks.0.b", "source": "blocks.0.a", "in": 4, "out": 6, "macs": 24 * 10},
    {"name": "blocks.1.a", "source": "blocks.1.a", "in": 4, "out": 6, "macs": 24 * 10},
]


def _plan(device: int, rows: list[dict[str, object]] = ROWS) -> memory.MemoryPlan:
    layers = [LayerInfo.from_plain(row) for row in rows]
    return memory.plan(SIZES, denoising=["transformer"], device=device, dtype="bfloat16", rows=layers, samples=3)


def test_blocks_and_what_is_in_none() -> None:
    found = _plan(10**6)
    assert (found.weights, found.largest, found.stays) == (2 * 1250, 2 * 450, 2 * 100)
    assert found.activations == 2 * 3 * 10 * (4 + 6 + 6) and found.held == 2 * 3 * 10 * (4 + 6)
    assert not found.blockwise and not found.recomputed and found.needed == found.weights + found.activations


def test_what_does_not_fit_takes_turns_and_a_backward_pass_needs_more() -> None:
    whole = 2500 + 960 + 600
    assert not _plan(whole).recomputed
    assert _plan(whole - 1).recomputed and not _plan(whole - 1).blockwise
    assert "computes blocks again" in _plan(whole - 1).text()
    turns = _plan(2500 + 959)
    assert turns.blockwise and turns.recomputed and turns.needed == 900 + 200 + 960
    assert "which needs 2.06 kB" in turns.text() and "lower" not in turns.text()
    assert "lower data.batch" in _plan(2000).text()


def test_room_is_left_while_activations_are_not_known() -> None:
    unseen = [{**row, "macs": None} for row in ROWS]
    for rows in ([], unseen):
        assert _plan(4000, rows).activations == 1000 and not _plan(4000, rows).blockwise
        assert _plan(3000, rows).blockwise


def test_the_device_is_asked_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.device_bytes("cpu", 0.0, 1.0) is None
    assert memory.device_bytes("cpu", 1.5, 0.5) == 750_000_000
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory.device_bytes("cuda", 0.0, 1.0) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = type("Properties", (), {"total_memory": 80 * 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert memory.device_bytes("cuda", 0.0, 0.25) == 20 * 2**30


def test_headers_tell_every_model_once(tiny_flux: Path) -> None:
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(tiny_flux)
    for name in ("transformer", "text_encoder", "vae"):
        stored = sum(t.numel() for t in getattr(pipe, name).state_dict().values())
        assert sum(stored_sizes(tiny_flux)[name].values()) == stored
