"""`compare` through the command line: captures once, rows as they finish, nothing done twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adatsq_pipe.storage import tables
from tests.conftest import TINY
from tests.whole import harness

pytestmark = pytest.mark.run


@pytest.fixture
def arguments(family: Callable[[str], Path], tmp_path: Path) -> list[str]:
    run = str(tmp_path / "run")
    return ["compare", "--run-dir", run, "--model", str(family("flux")), "--executor", "inline", *TINY]


def test_rows_share_the_capture_and_are_not_done_again(arguments: list[str], tmp_path: Path) -> None:
    first = harness.run(*arguments, "--methods", "rtn,q_dit", "--bits", "w4a4")
    assert first.returncode == 0, first.stderr
    said = first.stderr + first.stdout
    assert said.count("capture: started") == 1 and said.count("solve: started") == 2
    assert "| rtn |" in first.stdout and "| q_dit |" in first.stdout
    rows = tables.read(tmp_path / "run" / "compare.parquet")
    assert [row["method"] for row in rows] == ["rtn", "q_dit"]
    assert all(0 < row["psnr"] < 100 and row["calibration_seconds"] > 0 for row in rows)
    assert rows[0]["latent_gain"] == 0 and rows[1]["latent_gain_over"] == "rtn" and rows[1]["latent_gain"] != 0
    assert said.count("floor: started") == 1 and "\nFloor: a relative change of 1e-7 in every weight" in first.stdout
    assert not (tmp_path / "run" / "model").exists()
    page = tmp_path / "run" / "compare.html"
    assert f"page      {page}" in first.stdout and "q_dit" in page.read_text("utf-8")
    assert "compare --run-dir" in page.read_text("utf-8"), "the page says how it was made"
    page.unlink()
    assert harness.run("report", str(tmp_path / "run")).returncode == 0 and page.exists()
    more = harness.run(*arguments, "--methods", "rtn,q_dit,vidit_q", "--bits", "w4a4")
    assert more.returncode == 0, more.stderr
    said = more.stderr + more.stdout
    assert "capture: started" not in said and said.count("evaluate: started") == 1
    assert "floor: started" not in said and "Floor: a relative" in more.stdout
    assert [r for r in tables.read(tmp_path / "run" / "compare.parquet") if r["method"] != "vidit_q"] == rows


def test_an_unknown_method_is_an_error_before_any_work(arguments: list[str]) -> None:
    done = harness.run(*arguments, "--methods", "quark")
    assert done.returncode == 2 and "choose from adatsq, " in done.stderr
