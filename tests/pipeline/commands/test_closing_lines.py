"""What `run` prints when it is done, on made-up summaries: sizes that grew, and scores of a single caption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.pipeline import report
from adatsq_pipe.pipeline.commands import run as command
from adatsq_pipe.pipeline.kind_quality import score_figure, score_line
from adatsq_pipe.pipeline.page.render import html
from adatsq_pipe.pipeline.summary import Summary
from adatsq_pipe.stages.scenes.world import metrics
from adatsq_pipe.storage.rundir import RunDir
from tests.support import made_run as made


def _sample(entry: int, task: str, right: list[bool], reference: list[bool]) -> dict[str, Any]:
    return {"entry": entry, "tasks": [task] * len(right), "right": right, "reference_right": reference}


ONE = [_sample(0, "single", [True, False], [True, True])]
"""Two pictures of one caption."""
TWO = [*ONE, _sample(1, "single", [False, False], [True, False])]
TASK_OF_ONE = [*TWO, _sample(2, "two", [True], [True])]
"""Two captions of a task, and one of another."""


def _summary(folder: Path) -> Summary:
    store = made.store(folder)
    return report.summarize(made.config(store), RunDir.at(store.context.run), store.context)


def _said(summary: Summary, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(command, "read_summary", lambda _: summary)
    command._print_summary(made.config(made.make_store(folder / "other")), RunDir(folder))
    return capsys.readouterr().out


def test_layers_that_grew_are_called_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = _summary(tmp_path)
    assert "quantized layers 4.00x smaller; PSNR" in _said(summary, tmp_path, monkeypatch, capsys)
    grown = replace(summary, size=replace(summary.size, layer_ratio=800 / 1280, transformer_ratio=0.5))
    said = _said(grown, tmp_path, monkeypatch, capsys)
    assert "quantized layers 1.60x larger; PSNR" in said and "smaller" not in said
    shown = {"text": None, "groups": [], "facts": [], "notes": {}, "configuration": "", "metrics": {}, "left_out": 0}
    for each, words in ((summary, "2.40x <small>smaller"), (grown, "2.00x <small>larger")):
        page = html("report.html.jinja", title="t", charts={}, tables={}, summary=each, duration="1 s", **shown)
        assert words in page


def test_a_task_with_one_caption_has_no_interval() -> None:
    assert score_line(metrics.compare(ONE)) == (
        "pictures that show what the caption asks for: full precision 1.000, quantized 0.500, paired difference -0.500"
    )
    # Means of captions: quantized 1/2 and 0, full precision 1 and 1/2; their differences are both -1/2.
    half = 1.96 * 0.25
    found = score_figure(metrics.compare(TWO), "quantized")
    assert (found.mean, found.interval) == (0.25, pytest.approx(half))
    assert score_line(metrics.compare(TWO)).endswith("quantized 0.250 +- 0.490, paired difference -0.500 +- 0.000")
    assert "+-" not in score_line(metrics.compare(TASK_OF_ONE)), "the error of the other task alone would be too small"
