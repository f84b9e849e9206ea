"""Whatever people write in captions, and whatever fails in a plot: the report is written and the run is done."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adatsq_pipe.pipeline import pictures, report
from adatsq_pipe.pipeline.notes import Notes
from adatsq_pipe.pipeline.plots import policy
from adatsq_pipe.pipeline.plots.figures import pyplot
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.rundir import RunDir
from tests.support import made_run as made
from tests.support.drawn import pixels

NO_FONT = "\U0010fffd\U0010fffe"
CAPTIONS = [
    "a $_$ sign", "$\\frac{", "cost: $5 and $6_^", "<b>bold</b> &amp; _it_ **md**", "two\nlines\r\n\tand\x07a bell",
    "\U0001f338 a flower", "%s {x} \\n \\u", "\u05d0\u05d1 \u0627\u0644", "", " ", "x" * 3000, "\u82b1" * 50, NO_FONT,
    "e\u0301 \u200d\ufe0f\u202e", "\x00",
]  # fmt: skip


def with_captions(monkeypatch: pytest.MonkeyPatch, *captions: str) -> None:
    """Have the made-up run's four pictures have these captions in turn."""
    original = made.samples

    def samples(numbers: list[int]) -> dict[str, Any]:
        files = original(numbers)
        for number, row in zip(numbers, files["samples.parquet"], strict=True):
            row["prompt"] = captions[number % len(captions)]
        return files

    monkeypatch.setattr(made, "samples", samples)


@pytest.mark.filterwarnings("error:Glyph:UserWarning")
@pytest.mark.parametrize("start", range(0, len(CAPTIONS), 4))
def test_no_caption_and_no_title_ends_the_pictures(start: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A glyph that is missing, which would be drawn as a box, is an error here."""
    with_captions(monkeypatch, *CAPTIONS[start : start + 4])
    context = made.drawn(made.store(tmp_path))
    for title in CAPTIONS[start : start + 4]:
        pictures.draw(context, tmp_path / "side.png", title)
        assert pixels(tmp_path / "side.png").shape[0] > 100


def test_a_dollar_sign_is_a_dollar_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it a formula, `$a$` and `a` would look alike but for the slant."""
    drawn = list[Any]()
    for caption in ("$a$", "$a"):
        with_captions(monkeypatch, caption)
        pictures.draw(made.drawn(made.store(tmp_path / caption)), tmp_path / "side.png", "title")
        drawn.append(pixels(tmp_path / "side.png"))
    below = slice(int(drawn[0].shape[0] * 0.9), None)
    assert not np.array_equal(drawn[0][below], drawn[1][below])
    assert not pyplot().rcParams["text.parse_math"]


def test_captions_that_no_font_has_stand_in_a_text_beside_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_captions(monkeypatch, "a cat", NO_FONT, "a dog", f"a {NO_FONT}")
    context = made.drawn(made.store(tmp_path))
    line = pictures.draw(context, tmp_path / "side.png", "title")
    assert line == (
        "no installed font has the characters of 2 of the 4 captions: they have numbers in the picture, and stand in "
        "side.txt"
    )
    assert (tmp_path / "side.txt").read_text("utf-8") == f"[1] a cat\n[2] {NO_FONT}\n[3] a dog\n[4] a {NO_FONT}\n"


def test_captions_that_a_font_has_need_no_text_and_an_old_one_goes(tmp_path: Path) -> None:
    (tmp_path / "side.txt").write_text("old")
    assert pictures.draw(made.drawn(made.store(tmp_path)), tmp_path / "side.png", "title") == ""
    assert not (tmp_path / "side.txt").exists()


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunDir, list[str]]:
    """A run whose report was written, and what was said."""
    store, said = made.store(tmp_path), list[str]()
    context, run = made.drawn(store), RunDir.at(store.context.run)
    manifest = context.manifest("assemble")
    sizes = manifest.read("model").value
    manifest.discard("model")
    (manifest.open_unit("model") / "model_index.json").write_text("{}")
    manifest.commit("model", value=sizes)
    monkeypatch.setattr(report, "card", lambda *_: "one\n![plot](policy.png)\n![sheet](sheet.png)\ntwo\n")
    steps: Any = [
        made.Step("assemble", True, "a"),
        made.Step("evaluate", True, context.fingerprints["evaluate"]),
    ]
    assert report.write(made.config(store), run, steps, context, said.append)
    return run, said


@pytest.mark.parametrize("plot", ["side_by_side.png", "policy.png", "steps.png"])
def test_a_plot_that_fails_is_one_line_and_the_run_is_done(
    plot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **_: Any) -> None:
        next(a for a in arguments if isinstance(a, Path)).write_bytes(b"half a picture")
        raise ValueError("no\n  room")

    module = {"side_by_side.png": pictures, "policy.png": policy, "steps.png": report.by_step}[plot]
    monkeypatch.setattr(module, "draw", fails)
    run, said = written(tmp_path, monkeypatch)
    failed = [plot, "sheet.png"] if plot == "side_by_side.png" else [plot]
    assert said == [f"report: {name}: ValueError: no room" for name in failed]
    facts = json.loads((run.report / "summary.json").read_text())["facts"]["report"]
    assert facts == dict.fromkeys(failed, "ValueError: no room")
    assert not any((run.report / name).exists() for name in failed)
    lines = ["one", "![plot](policy.png)", "![sheet](sheet.png)", "two"]
    left = [line for line in lines if not any(f"({name})" in line for name in failed)]
    assert (run.model / "README.md").read_text().splitlines() == left


def test_scores_that_cannot_be_computed_are_none_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(report, "_scores", fails)
    run, said = written(tmp_path, monkeypatch)
    assert said == ["report: asked_for: LinAlgError: SVD did not converge"]
    assert json.loads((run.report / "summary.json").read_text())["quality"]["asked_for"] is None


def test_a_whole_report_has_no_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = written(tmp_path, monkeypatch)
    assert said == [] and json.loads((run.report / "summary.json").read_text())["facts"]["report"] == {}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), DamagedUnit("evaluate", "quantized/000", "gone")])
def test_a_full_disk_and_a_damaged_unit_are_no_notes(error: Exception) -> None:
    notes = Notes()
    with pytest.raises(type(error)), notes.of("policy.png"):
        raise error
    assert notes == {}


def test_equal_latents_have_a_finite_mean(tmp_path: Path) -> None:
    """Where all frames are given, as of a clip that is only decoded, the quantized latents are the others' own."""
    rows: list[dict[str, Any]] = [{"latent_psnr": float("inf")}, {"latent_psnr": 40.0}]
    found = report._mean([rows], "latent_psnr")
    assert (found.mean, found.worst) == (120, 40)
