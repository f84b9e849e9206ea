"""The page of a made-up run: its pictures as files, its tables and plots, and what it does when a part fails."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adatsq_pipe.pipeline import report
from adatsq_pipe.pipeline.page import charts, images, render
from adatsq_pipe.pipeline.page.tables import Table, shown
from adatsq_pipe.pipeline.pictures import drawn
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.storage.rundir import RunDir
from tests.pipeline.test_report_texts import NO_FONT, with_captions, written
from tests.support import made_run as made
from tests.support.made_store import make_store


class Frame(np.ndarray[Any, Any]):
    """A frame that can be told when it is gone."""


HOSTILE = "</script><img src=x onerror=alert(1)> $_$ & \u82b1"


class Parts(HTMLParser):
    """What a page refers to, and how it describes its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.sources, self.descriptions = list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.descriptions += [value or "" for name, value in attrs if name == "alt"]


def test_names_of_files_are_plain_and_captions_that_differ_have_names_that_differ() -> None:
    assert images.slug("A red circle, left of (two) squares!") == "a-red-circle-left-of-two-squares"
    names = [images.slug(text) for text in ("\u82b1", "\u83ef", NO_FONT, "", "...", "caf\u00e9", "cafe")]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]*", name) and len(name) <= 60 for name in [*names, images.slug("x" * 3000)])


def test_pictures_are_written_at_full_size_with_their_difference(tmp_path: Path) -> None:
    context = made.drawn(made.store(tmp_path))
    pairs = images.write_pictures(context, tmp_path)
    every = list(drawn(context))
    assert len(pairs) == len(every) == 4 and pairs[3].full.endswith("caption-3-10-fp.gif"), "two are clips"
    for pair, (row, wanted, got) in list(zip(pairs, every, strict=True))[:2]:
        assert (pair.height, pair.width) == wanted.shape[:2] and pair.row == row
        full, quantized, gap = (
            np.asarray(Image.open(tmp_path / path)) for path in (pair.full, pair.quantized, pair.difference)
        )
        np.testing.assert_allclose(full, wanted.clip(0, 1) * 255, atol=0.51)
        np.testing.assert_allclose(quantized, got.clip(0, 1) * 255, atol=0.51)
        np.testing.assert_allclose(gap, np.minimum(abs(got - wanted) * 8, 1) * 255, atol=0.51)


def test_pictures_of_an_earlier_report_are_gone(tmp_path: Path) -> None:
    context = made.drawn(made.store(tmp_path))
    (tmp_path / images.FOLDER).mkdir()
    (tmp_path / images.FOLDER / "old.png").write_text("")
    images.write_pictures(context, tmp_path)
    assert len(list((tmp_path / images.FOLDER).iterdir())) == 12


def test_a_clip_is_a_gif_that_loops(tmp_path: Path) -> None:
    clip = np.linspace(0, 1, 3 * 4 * 4 * 3).reshape(3, 4, 4, 3)
    images.save(clip, tmp_path / "clip.gif")
    with Image.open(tmp_path / "clip.gif") as file:
        assert file.n_frames == 3 and file.info["loop"] == 0 and file.info["duration"] == 120


def test_of_a_clip_one_frame_is_made_at_a_time(tmp_path: Path) -> None:
    """A clip of 81 frames of 480 x 832 is 388 MB, and its difference map would be another four of them."""
    alive, most = set[int](), 0

    def frames() -> Iterator[Frame]:
        nonlocal most
        for number in range(6):
            frame = np.full((4, 4, 3), number / 6).view(Frame)
            alive.add(number)
            weakref.finalize(frame, alive.discard, number)
            most = max(most, len(alive))
            yield frame

    images.save(frames(), tmp_path / "clip.gif")
    with Image.open(tmp_path / "clip.gif") as file:
        assert file.n_frames == 6
    assert most <= 2, "the next frame is made while its predecessor is let go of"


def test_the_heat_maps_have_a_cell_for_every_layer_and_step(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.bits[1][0] = 16
    store.write_survey()
    store.write_scores()
    store.write_front()
    chart = charts.policy_chart(store.context)
    sensitivity, bits = (np.array(trace.z, dtype=float) for trace in chart.figure.data)
    assert bits.shape == sensitivity.shape == (2, store.steps)
    for layer in (0, 1):
        for step in range(store.steps):
            width = store.bits[step][layer]
            assert np.isnan(bits[layer, step]) if width == 16 else bits[layer, step] == width
            if width < 16:
                assert sensitivity[layer, step] == pytest.approx(float(store.scores.mean(0)[step, layer].log10()))
    names = [row.name for row in survey_of(store.context).layers]
    assert [row[:3] for row in chart.table.rows][:2] == [
        [names[0], 0, store.bits[0][0]],
        [names[0], 2, store.bits[2][0]],
    ]
    assert len(chart.table.rows) == 2 * store.steps - 1


def test_the_front_names_the_command_that_picks_each_point(tmp_path: Path) -> None:
    store = made.store(tmp_path, recipe={"method": "endpoint"})
    manifest = store.manifest("search")
    front = {"mean_bits": 4.25, "mac_weighted_bits": 4.1, "rollout_error": 0.001, "front": 2, "policy": store.bits}
    own = [b for row in store.bits for b in row if b < 16]
    rows = [
        {"mean_bits": mean, "mac_weighted_bits": mean, "predicted_error": 0.01, "rollout_error": error, "bits": bits}
        for mean, error, bits in ((4.25, 0.001, own), (3.5, None, [3, 4, 3, 4, 3, 4]))
    ]
    manifest.discard("front")
    made.commit(store.context, "search", "front", value=front, files={"front.parquet": rows})
    chart = charts.front_chart(store.context, "runs/mine")
    line, star = chart.figure.data
    assert list(line.x) == [3.5, 4.25] and list(line.y) == pytest.approx([20.0, 30.0])
    assert list(line.customdata) == ["adatsq-pipe pick runs/mine --mean-bits " + bits for bits in ("3.5", "4.25")]
    assert (list(star.x), list(star.y)) == ([4.25], [pytest.approx(30.0)])


def test_the_page_needs_nothing_but_itself_and_shows_captions_literally(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_captions(monkeypatch, HOSTILE)
    run, said = written(tmp_path, monkeypatch)
    text = (run.report / report.PAGE).read_text("utf-8")
    assert len(text) < 10_000_000 and not any(report.PAGE in line for line in said)
    parts = Parts()
    parts.feed(text)
    pictures = [source for source in parts.sources if not source.startswith("#")]
    assert pictures and all(source.startswith("data:image/") for source in pictures), "nothing is loaded"
    assert f"full precision: {HOSTILE}" in parts.descriptions
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert [row[0] for row in data["pictures"]["rows"]] == [HOSTILE] * 4
    assert [row[3] for row in data["pictures"]["rows"]] == made.ERRORS


def test_the_worst_come_first(tmp_path: Path) -> None:
    context = made.drawn(made.store(tmp_path))
    groups = render._groups(images.write_pictures(context, tmp_path), tmp_path)
    shown_errors = {group.title: [view.pair.row["latent_error"] for view in group.views] for group in groups}
    assert shown_errors == {"the worst": [0.05, 0.04, 0.02], "captions": [0.01]}


def test_pictures_beyond_the_room_are_files_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = made.drawn(made.store(tmp_path))
    pairs = images.write_pictures(context, tmp_path)
    sizes = [sum((tmp_path / p).stat().st_size for p in (x.full, x.quantized, x.difference)) for x in pairs]
    monkeypatch.setattr(render, "EMBEDDED_BYTES", sizes[1] * 4 // 3)
    views = render._groups(pairs, tmp_path)[0].views
    assert views[0].sources["full"].startswith("data:image/png;base64,")
    assert views[1].sources["full"] == views[1].pair.full and (tmp_path / views[1].pair.full).is_file()


@pytest.mark.parametrize("part", ["policy_chart", "steps_chart"])
def test_a_chart_that_fails_is_a_line_of_the_page(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Any:
        raise ValueError("no\n room")

    monkeypatch.setattr(charts, part, fails)
    run, said = written(tmp_path, monkeypatch)
    name = part.removesuffix("_chart")
    assert said == [f"report: report.html: {name}: ValueError: no room"]
    text = (run.report / report.PAGE).read_text("utf-8")
    assert f"<li>report.html: {name}: ValueError: no room</li>" in text and f'data-plot="{name}"' not in text


def test_a_page_that_fails_leaves_the_run_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Any:
        raise ValueError("no template")

    monkeypatch.setattr(render, "write", fails)
    run, said = written(tmp_path, monkeypatch)
    assert said == ["report: report.html: ValueError: no template"]
    assert RunDir.at(run.uri).model.exists() and not (run.report / report.PAGE).exists()


def test_cells_have_four_digits() -> None:
    assert [shown(cell) for cell in (None, "a", 7, 0.123456, 12345.6)] == ["", "a", "7", "0.1235", "1.235e+04"]
    assert Table(name="t", columns=("a",), rows=[[1]]).plain() == {"name": "t", "columns": ["a"], "rows": [[1]]}


def test_a_column_may_have_a_format_of_its_own_and_empty_cells_stay_empty() -> None:
    table = Table(
        name="t", columns=("gain", "name"), rows=[[6.4512, "a"], [None, "b"], [-0.5, "c"]], formats={"gain": "+.2f"}
    )
    assert [table.text(0, row[0]) for row in table.rows] == ["+6.45", "", "-0.50"]
    assert (table.numeric(0), table.numeric(1)) == (True, False)
