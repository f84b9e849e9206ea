"""The open denoiser of a process: with what it is opened, and until when it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.stages.denoiser import loading
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from tests.support.made_store import make_store


def test_the_denoiser_is_opened_as_the_settings_say_and_stays_open_unless_it_is_to_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[tuple[str, dict[str, Any]]]()

    class Opened:
        def __init__(self, folder: str, **how: Any) -> None:
            made.append((folder, how))

    loading._open.cache_clear()
    monkeypatch.setattr(loading, "Denoiser", Opened)
    call = {"num_inference_steps": 7}
    context = make_store(tmp_path, compute={"dtype": "bfloat16"}, model={"call": call}).context
    first = denoiser_of(context)
    how = {"dtype": "bfloat16", "device": "cpu", "call": call, "blockwise": False}
    assert made == [(str(context.model.path), how)]
    assert denoiser_of(context) is first
    changed = denoiser_of(context, to_change=True)
    assert denoiser_of(context) is not changed and len(made) == 2
    denoiser_of(context, folder="/elsewhere")
    assert made[2] == ("/elsewhere", how)
    loading._open.cache_clear()
