"""`compare` takes the model of the comparison that is there, or is told of one."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.comparison import ROWS, Comparison
from adatsq_pipe.storage.rundir import RunDir


def test_a_comparison_of_another_model_is_not_written_over(tmp_path: Path) -> None:
    run = RunDir.open(str(tmp_path / "cmp"))
    run.create()
    (run.path / ROWS).write_bytes(b"rows")
    Comparison(model="z-image").write(run)
    result = CliRunner().invoke(main, ["compare", "--run-dir", str(run.path), "--methods", "rtn"])
    assert result.exit_code == 2
    assert "holds a comparison of z-image" in result.output and "name the --model" in result.output
    assert (run.path / ROWS).read_bytes() == b"rows"


def test_a_comparison_without_a_possible_row_is_refused_at_the_start(tmp_path: Path) -> None:
    place = tmp_path / "cmp"
    options = ["--methods", "rtn,orbitquant", "--bits", "w3a2.5"]
    result = CliRunner().invoke(main, ["compare", "--run-dir", str(place), *options])
    assert result.exit_code == 2
    assert "rtn at w3a2.5 is refused: its activations have one width, and 2.5 is a mean of several" in result.output
    assert len(result.output.splitlines()) == 1 and not place.exists()
