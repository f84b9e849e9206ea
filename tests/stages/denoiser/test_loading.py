"""The open denoiser of a process: how it is opened, and how long it stays open."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.stages.denoiser import loading
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from tests.support.made_store import make_store


def test_the_denoiser_is_opened_as_the_settings_say_and_stays_open_unless_it_is_to_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = list[tuple[str, dict[str, Any]]]()

    class FakeDenoiser:
        def __init__(self, folder: str, **options: Any) -> None:
            opened.append((folder, options))

    monkeypatch.setattr(loading, "SLOT", loading.ModelSlot())
    monkeypatch.setattr(loading, "Denoiser", FakeDenoiser)
    call = {"num_inference_steps": 7}
    context = make_store(tmp_path, compute={"dtype": "bfloat16"}, model={"call": call}).context
    first = denoiser_of(context)
    options = {"dtype": "bfloat16", "device": "cpu", "call": call, "blockwise": False, "cast": None}
    assert opened == [(str(context.model.path), options)]
    assert denoiser_of(context) is first
    changed = denoiser_of(context, to_change=True)
    assert denoiser_of(context) is not changed and len(opened) == 2
    denoiser_of(context, folder=tmp_path)
    assert opened[2] == (str(tmp_path), options)


def test_the_denoiser_before_is_released_before_another_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = weakref.WeakSet[Any]()

    class FakeDenoiser:
        def __init__(self, folder: str, **options: Any) -> None:
            assert not alive, "two models in memory"
            alive.add(self)

    monkeypatch.setattr(loading, "Denoiser", FakeDenoiser)
    slot, request = loading.ModelSlot(), loading.ModelRequest(folder=Path("a"), dtype="float32", device="cpu")
    slot.open(request)
    slot.open(replace(request, call={"guidance_scale": 2.0}))
    assert len(alive) == 1
    slot.open(replace(request, blockwise=True))
    slot.take(replace(request, blockwise=True))
    assert not alive, "a slot that gave its denoiser up holds nothing"
