"""The page of a run that is not finished, on a store written by hand: what is on it, and what is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.pipeline import plan, report
from adatsq_pipe.pipeline.page import partial
from adatsq_pipe.pipeline.plan import Step
from adatsq_pipe.storage.failures import Failure
from adatsq_pipe.storage.rundir import RunDir
from tests.support import made_run as made
from tests.support.made_context import FIRST, SECOND
from tests.support.made_store import MadeStore

LACKS, ADVICE = ["assemble <b>, evaluate not done"], "finish it with: adatsq-pipe run --run-dir x"


def _steps(store: MadeStore, done: set[str]) -> list[Step]:
    return [
        Step(
            stage=stage, fingerprint=store.context.fingerprints[stage.name], identity={}, complete=stage.name in done,
            done=3, expected=4 if stage.name in done else None, damaged=(), changed=(),
            size=2_500_000 if stage.name == "capture" else 0, memory=7_000_000,
            failures=(Failure(unit="u", host="h", reason="ValueError: no", when=0.0),)
            if stage.name == "assemble" else (),
        )
        for stage in plan.stages_of(made.config(store))
    ]  # fmt: skip


def _page(store: MadeStore, *done: str) -> tuple[str, dict[str, Any]]:
    run = RunDir.at(store.context.run)
    path = partial.write_partial(made.config(store), run, _steps(store, set(done)), store.context, LACKS, ADVICE)
    assert path == run.report / "unfinished.html"
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return text, json.loads(found[1])


def test_the_page_says_what_is_missing_and_shows_what_is_there(tmp_path: Path) -> None:
    text, data = _page(made.store(tmp_path), "capture", "fisher", "hessian", "solve", "search")
    assert "<li>assemble &lt;b&gt;, evaluate not done</li>" in text
    assert "<p>Finish it with: adatsq-pipe run --run-dir x</p>" in text
    assert data["space"]["rows"] == [["capture", 2.5, 7.0]]
    assert data["stages"]["rows"][0] == ["capture", "done", 3, 4, 0, 0]
    assert data["errors"]["rows"] == [["assemble", "u", "failed", "ValueError: no"]]
    assert {row[0]: row[3] for row in data["layers"]["rows"]}[SECOND] == 0.07
    assert data["left"]["rows"] == [["norm", "", "3", "", ""]]
    assert ["capture", 22.5, 30.0, 3.0, 12.0] in data["seconds"]["rows"], "20 + 2.5 s; units took 45 s"
    assert data["policy"]["rows"] and "Heat maps of" in text


def test_what_rests_on_stages_that_are_not_done_is_left_out(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    store.manifest("solve").withdraw(f"layer/{SECOND}")
    text, data = _page(store, "capture")
    layers = {row[0] for row in data["layers"]["rows"]}
    assert FIRST in layers and SECOND not in layers
    assert "policy" not in data and "front" not in data and 'id="figure-' not in text
    assert "layers" not in _page(store)[1]


def test_what_cannot_be_read_is_named_and_the_rest_is_there(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    marker = next(tmp_path.glob("**/search/*/markers/front.json"))
    marker.write_text("{")
    text, data = _page(store, "capture", "fisher", "hessian", "solve", "search")
    assert "policy" not in data and data["layers"]["rows"]
    assert re.search(r"<li>policy: [^<]*front", text)


def test_the_page_of_what_was_finished_before_stays_and_a_finished_report_takes_its_place(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    run = RunDir.at(store.context.run)
    run.report.mkdir(exist_ok=True)
    (run.report / "report.html").write_text("before")
    _page(store, "capture")
    assert (run.report / "report.html").read_text() == "before"
    report._plot(
        run.report, store.context, report.summarize(made.config(store), run, store.context), report.Notes(), {}
    )
    assert not (run.report / "unfinished.html").exists()


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    report_folder = RunDir.at(store.context.run).report
    report_folder.write_text("")
    with pytest.raises(OSError, match="report"):
        _page(store, "capture")
