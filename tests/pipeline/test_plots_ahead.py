"""The plots that are drawn while stages run: the same bytes as drawn at the end, of this very run, or none."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.pipeline import report
from adatsq_pipe.pipeline.notes import Notes
from adatsq_pipe.pipeline.plots import ahead, policy, weight_bits
from adatsq_pipe.pipeline.plots.ahead import PlotsAhead
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.weights.widths import weight_widths
from adatsq_pipe.storage.rundir import RunDir
from tests.support import made_run as made


@pytest.fixture(autouse=True)
def modules_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MODULES", ("json",))


def test_they_have_the_bytes_of_the_same_plots_drawn_to_files(tmp_path: Path) -> None:
    context = made.drawn(made.store(tmp_path))
    recipe = context.settings[Recipe].model_copy(update={"weight_budget": 3.5})
    context = replace(context, settings=context.settings.replaced(recipe))
    drawn = PlotsAhead(context).of(context)
    policy.draw(context, tmp_path / "policy.png")
    weight_bits.draw(weight_widths(context), tmp_path / "bits.png")
    assert dict(drawn) == {
        "policy.png": (tmp_path / "policy.png").read_bytes(),
        "weight_bits.png": (tmp_path / "bits.png").read_bytes(),
    }


def test_what_is_let_go_of_meanwhile_is_freed(tmp_path: Path) -> None:
    """A model that a stage let go of may be garbage yet when the plots are drawn, and wait to be collected."""

    class Model: ...

    context = made.drawn(made.store(tmp_path))
    gc.disable()
    try:
        gone: Any = Model()
        gone.itself, left = gone, weakref.ref(gone)
        del gone
        PlotsAhead(context).of(context)
        assert left() is not None, "it is in a cycle"
    finally:
        gc.enable()
    gc.collect()
    assert left() is None


def test_another_context_gets_none(tmp_path: Path) -> None:
    context = made.drawn(made.store(tmp_path))
    plots = PlotsAhead(context)
    assert plots.of(replace(context, fingerprints={**context.fingerprints, "search": "another"})) == {}
    assert plots.of(context).keys() == {"policy.png"}


def test_the_report_takes_them_and_draws_what_is_not_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise ValueError("no room")

    store, notes = made.store(tmp_path), Notes()
    context, run = made.drawn(store), RunDir.at(store.context.run)
    run.report.mkdir(exist_ok=True)
    summary = report.summarize(made.config(store), run, context)
    report._plot(run.report, context, summary, notes, {"policy.png": b"drawn before"})
    assert (run.report / "policy.png").read_bytes() == b"drawn before" and notes == {}
    assert (run.report / "steps.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(policy, "draw", fails)
    plots = PlotsAhead(context)
    report._plot(run.report, context, summary, notes, plots.of(context))
    assert notes == {"policy.png": "ValueError: no room"} and not (run.report / "policy.png").exists()
