"""The page of a comparison: its table, plots and pictures, and what it does when a part of it fails."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from adatsq_pipe.pipeline import comparison
from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.page import comparison_page, gain_charts, method_pictures, render
from adatsq_pipe.pipeline.page.comparison_page import PAGE, methods_table
from adatsq_pipe.pipeline.paired import with_gains
from adatsq_pipe.storage import tables
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.rundir import RunDir
from tests.pipeline.page.test_page import HOSTILE, Parts
from tests.support.compared import ERRORS, FULL, GAPS, STEP, compared, compared_run


def written(run: RunDir) -> str:
    assert comparison_page.write_page(run) == {}
    return (run.path / PAGE).read_text("utf-8")


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def draws_of(text: str) -> list[dict[str, Any]]:
    found = re.search(r"^const draws = (.*);$", text, re.MULTILINE)
    assert found
    draws: list[dict[str, Any]] = json.loads(found[1])
    return draws


def test_methods_are_rows_with_their_gains_the_best_first(tmp_path: Path) -> None:
    table = data_of(written(compared_run(tmp_path)))["methods"]
    by_name = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    assert list(by_name) == ["rtn", "quarot"]
    # By hand: decibels between the two methods' errors, averaged over the seeds of each caption, then over captions.
    ratios = [-10 * math.log10(b / a) for a, b in zip(*ERRORS, strict=True)]
    gains = [(ratios[i] + ratios[i + 2]) / 2 for i in range(2)]
    assert by_name["rtn"]["latent gain, dB"] == 0
    assert by_name["quarot"]["latent gain, dB"] == pytest.approx(sum(gains) / 2)
    half = 1.96 * abs(gains[0] - gains[1]) / math.sqrt(2) / math.sqrt(2)
    assert by_name["quarot"]["gain ±"] == pytest.approx(half)
    assert by_name["quarot"]["effective bits"] == pytest.approx(4.1)


def test_the_page_says_the_floor_what_was_left_out_and_how_it_was_made(tmp_path: Path) -> None:
    text = written(compared_run(tmp_path))
    assert "<p>Floor: low.</p>" in text and "adatsq-pipe compare --methods rtn,quarot</pre>" in text
    data = data_of(text)
    assert data["left-out"]["rows"] == [["svdquant", "w4a4", "refused", "a group of 64 does not divide 341"]]
    assert data["versions"]["rows"] == [["torch", "9.9"]]
    assert "all-rows" not in data, "the table has all rows already"


def test_columns_that_no_row_has_a_value_in_are_left_out() -> None:
    nothing = dict.fromkeys(("score", "score_interval", "score_difference", "score_difference_interval"))
    table = methods_table("methods", with_gains([compared(method="quarot", **nothing)]))
    assert not {"prompt match", "match ±", "latent gain, dB"} & set(table.columns)
    assert {"PSNR, dB", "weights", "calibration, s"} <= set(table.columns)
    assert [len(row) for row in table.rows] == [len(table.columns)]


def test_every_setting_that_a_sweep_tried_has_a_row_in_a_second_table(tmp_path: Path) -> None:
    run = compared_run(tmp_path)
    rows = tables.read(run.path / comparison.ROWS)
    worse = {**rows[0], "change": '{"weight_clip": true}', "latent_error_geometric": 9.0}
    tables.write(run.path / comparison.ROWS, [*rows, worse])
    data = data_of(written(run))
    assert [row[0] for row in data["methods"]["rows"]] == ["rtn", "quarot"]
    assert sorted(row[0] for row in data["all-rows"]["rows"]) == ["quarot", "rtn", "rtn (weight_clip=True)"]


@pytest.mark.parametrize("clips", [False, True], ids=["pictures", "clips"])
def test_pictures_of_every_method_stand_beside_full_precision(clips: bool, tmp_path: Path) -> None:
    run = compared_run(tmp_path, clips=clips)
    draws = draws_of(written(run))
    hardest = [(draw["prompt"], draw["seed"]) for draw in draws[:3]]
    assert hardest == [("a dog", 8), ("a dog", 7), ("a cat", 8)], "the largest mean error over the methods first"
    assert len(draws) == 4 and list(draws[0]["tiles"]) == ["w4a4 rtn", "w4a4 quarot"]
    assert draws[0]["tiles"]["w4a4 rtn"]["line"] == "PSNR 33.0 dB, SSIM 0.900"
    files = sorted(path.name for path in (run.path / method_pictures.FOLDER).iterdir())
    ending = "gif" if clips else "png"
    assert files[:3] == [
        f"00-a-dog-8-00-w4a4-rtn.{ending}",
        f"00-a-dog-8-01-w4a4-quarot.{ending}",
        f"00-a-dog-8-fp.{ending}",
    ]
    assert len(files) == 12
    full = FULL + 3 * STEP  # The hardest draw is the fourth.
    for name, level in zip(files[:3], (full + GAPS[0], full + GAPS[1], full), strict=True):
        with Image.open(run.path / method_pictures.FOLDER / name) as picture:
            shade = np.asarray(picture.convert("RGB"), dtype=float)
        assert shade.shape == (16, 24, 3) and abs(shade / 255 - level).max() < 0.5 / 255 + (0.01 if clips else 1e-9)


def test_the_hardest_draws_come_first_and_then_all_captions() -> None:
    measured = [[{"latent_error": error} for error in errors] for errors in ((9, 1, 5, 1, 0, 7), (1, 1, 5, 1, 2, 1))]
    assert method_pictures.choose(measured) == [
        (0, True), (2, True), (5, True), (1, False), (3, False), (4, False)
    ]  # fmt: skip
    assert len(method_pictures.choose([[{"latent_error": 1.0}] * 100])) == method_pictures.DRAWS


def test_the_page_needs_nothing_but_itself_and_shows_captions_literally(tmp_path: Path) -> None:
    text = written(compared_run(tmp_path, HOSTILE, "\u82b1 \U0001f338"))
    parts = Parts()
    parts.feed(text)
    pictures = [source for source in parts.sources if not source.startswith("#")]
    assert pictures and all(source.startswith("data:image/") for source in pictures), "nothing is loaded"
    assert len(text) < 10_000_000
    assert {draw["prompt"] for draw in draws_of(text)} == {HOSTILE, "\u82b1 \U0001f338"}
    assert any(HOSTILE in text or "\u82b1" in text for text in parts.descriptions)


def test_pictures_beyond_the_room_are_files_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = compared_run(tmp_path)
    written(run)
    first = sum(p.stat().st_size for p in (run.path / method_pictures.FOLDER).glob("00-*")) * 4 // 3
    monkeypatch.setattr(comparison_page, "EMBEDDED_BYTES", first)
    draws = draws_of(written(run))
    assert draws[0]["full"].startswith("data:image/png;base64,")
    assert draws[1]["full"] == "compare-pictures/01-a-dog-7-fp.png" and (run.path / draws[1]["full"]).is_file()


def test_a_row_without_pictures_is_a_line_and_the_others_have_theirs(tmp_path: Path) -> None:
    run = compared_run(tmp_path)
    for unit in ("quantized/000", "quantized/001"):
        run.manifest("evaluate", "a" * 64).discard(unit)
    notes = comparison_page.write_page(run)
    assert list(notes) == [part := "compare-pictures: rtn at w4a4"] and "has no pictures" in notes[part]
    text = (run.path / PAGE).read_text("utf-8")
    assert [list(draw["tiles"]) for draw in draws_of(text)] == [["w4a4 quarot"]] * 4
    assert "<li>compare-pictures: rtn at w4a4: FileNotFoundError" in text


@pytest.mark.parametrize("name", ["gain", "error"])
def test_a_chart_that_fails_is_a_line_of_the_page(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Any:
        raise ValueError("no\n room")

    run = compared_run(tmp_path)
    monkeypatch.setattr(gain_charts, f"{name}_chart", fails)
    assert comparison_page.write_page(run) == {f"compare.html: {name}": "ValueError: no room"}
    text = (run.path / PAGE).read_text("utf-8")
    assert f"<li>compare.html: {name}: ValueError: no room</li>" in text and f'data-plot="{name}"' not in text


def test_a_page_that_fails_leaves_the_tables_and_no_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Any:
        raise ValueError("no template")

    run = compared_run(tmp_path)
    written(run)
    monkeypatch.setattr(comparison_page, "html", fails)
    assert comparison_page.write_page(run) == {PAGE: "ValueError: no template"}
    assert not (run.path / PAGE).exists() and (run.path / comparison.ROWS).exists()


def test_the_gain_chart_has_a_point_with_its_interval_for_every_row() -> None:
    rows = with_gains([compared(), compared(method="quarot", latent_log_by_caption=[-4.0, -2.7])])
    chart = gain_charts.gain_chart(rows)
    points = {trace.name: trace for trace in chart.figure.data}
    gain, half = 6 / math.log(10), 1.96 * 8 / math.log(10) / 2
    assert points["quarot"].y[0] == pytest.approx(gain) and points["quarot"].error_y.array[0] == pytest.approx(half)
    assert (points["rtn"].y[0], points["rtn"].error_y.array[0]) == (0, 0)
    places = [points[name].x[0] for name in ("rtn", "quarot")]
    assert places == pytest.approx([4.1 - 0.012, 4.1 + 0.012]), "points at the same bits stand beside each other"
    assert chart.table.rows[1][:4] == ["quarot", "w4a4", pytest.approx(4.1), pytest.approx(gain)]


def test_the_error_chart_has_decibels_and_the_line_that_nothing_beats() -> None:
    made = (("a", 3.0, 0.1), ("b", 4.0, 0.2), ("c", 8.0, 0.001))
    rows = with_gains([compared(method=m, weight_bits=b, latent_error_geometric=e) for m, b, e in made])
    *points, line = gain_charts.error_chart(rows).figure.data
    assert [point.y[0] for point in points] == pytest.approx([10.0, 10 * math.log10(5), 30.0])
    assert list(line.x) == pytest.approx([3.5, 6.0]) and list(line.y) == pytest.approx([10.0, 30.0])


def test_the_best_at_a_pair_of_bits_is_none_that_is_larger_than_the_others() -> None:
    """A branch in full precision makes a row better and larger: it leads nothing."""
    rows = with_gains(
        [
            compared(),
            compared(method="svdquant", latent_log_by_caption=[-9.0, -9.0], weight_bits=8.7),
            compared(method="endpoint", latent_log_by_caption=[-5.0, -5.0]),
            compared(method="quarot", latent_log_by_caption=[-4.0, -4.0]),
            compared(method="rtn", bits="w3a3", weight_bits=3.5),
        ]
    )
    assert [row["method"] for row in comparison_page.leaders_of(rows)] == ["endpoint", "rtn"]


def test_without_a_baseline_there_is_no_gain_chart(tmp_path: Path) -> None:
    run = compared_run(tmp_path)
    rows = [row for row in tables.read(run.path / comparison.ROWS) if row["method"] == "quarot"]
    tables.write(run.path / comparison.ROWS, with_gains(rows))
    text = written(run)
    assert 'data-plot="error"' in text and 'data-plot="gain"' not in text and "best at" not in text


def test_report_writes_the_page_of_a_comparison_again(tmp_path: Path) -> None:
    run = compared_run(tmp_path)
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert done.exit_code == 0 and f"page      {tmp_path}/compare.html" in done.output
    assert (run.path / PAGE).stat().st_size > 1_000_000


@pytest.mark.parametrize(
    ("text", "what"), [(None, "does not exist"), ("{", "is not as it was written"), ("{}", "is not as")]
)
def test_a_comparison_that_cannot_be_read_is_one_line(text: str | None, what: str, tmp_path: Path) -> None:
    run = compared_run(tmp_path)
    (run.path / comparison.FILE).unlink()
    if text is not None:
        (run.path / comparison.FILE).write_text(text)
    with pytest.raises(StorageError, match=what):
        comparison.read_comparison(run)
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert done.exit_code == 1 and done.output.count("\n") == 1 and "compare again with the same command" in done.output


def test_a_comparison_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    left = comparison.LeftOut(name="q", bits="w4a4", refused="it broke", failed=True)
    wanted = comparison.Comparison(model="m", references={"a": "b"}, left_out=[left], command="x \u82b1")
    wanted.write(run)
    assert comparison.read_comparison(run) == wanted
    assert set(wanted.versions) >= {"Python", "torch", "diffusers"}


def test_the_names_of_both_pages_are_of_one_renderer() -> None:
    assert render.measured({"psnr": 36.64, "ssim": 0.9971}) == "PSNR 36.6 dB, SSIM 0.997"
