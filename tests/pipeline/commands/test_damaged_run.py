"""What the commands say of a run whose files were damaged."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.request import write_request
from adatsq_pipe.storage.heartbeat import Beat
from adatsq_pipe.storage.published import PublishedModel
from adatsq_pipe.storage.rundir import RunDir
from tests.pipeline.test_plan import NAMES, Made


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run directory that has published a model of one file."""
    made = RunDir(tmp_path / "run")
    made.create()
    folder = made.path / "published" / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    made.publish(folder, "a", "b")
    made.report.mkdir()
    PublishedModel(folder).vouch(made.report, [])
    return made


def test_verify_names_a_damaged_file_of_the_published_model_and_passes_without(run: RunDir) -> None:
    sound = CliRunner().invoke(main, ["verify", "--run-dir", str(run.path)])
    assert (sound.exit_code, sound.output) == (0, "1 units verified\n")
    (run.model / "model_index.json").write_text("[]")
    found = CliRunner().invoke(main, ["verify", "--run-dir", str(run.path)])
    assert found.exit_code == 1 and "1 of 1 units are damaged" in found.output
    assert f"published a/b: {run.path}/published/a/b/model_index.json does not have the digest" in found.output


def test_a_damaged_model_is_not_exported(run: RunDir) -> None:
    (run.model / "model_index.json").write_text("")
    done = CliRunner().invoke(main, ["export", str(run.path), "--format", "dequantized"])
    assert done.exit_code == 1 and done.output.startswith("error: ") and "model_index.json has 0 bytes" in done.output
    assert f"restore it with: adatsq-pipe run --run-dir {run.path}" in done.output
    assert not (run.path / "exports").exists()


@pytest.mark.parametrize("command", ["status", "report", "why", "verify"])
@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("nothing", "it does not exist"),
        ("a file", "it is a file"),
        ("an empty folder", "it is empty"),
        ("another folder", "no run.json"),
        ("a pipeline", "it is a pipeline folder"),
        ("a run without its run.json", 'though stages are there); restore that file as {"format": 1}'),
    ],
)
def test_what_is_no_run_is_named_for_what_it_is(command: str, there: str, words: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if there == "a file":
        place.touch()
    elif there != "nothing":
        place.mkdir()
    if there == "another folder":
        (place / "thesis.tex").touch()
    if there == "a pipeline":
        (place / "model_index.json").touch()
    if there == "a run without its run.json":
        (place / "solve" / "0123" / "markers").mkdir(parents=True)
    done = CliRunner().invoke(main, [command, str(place)])
    assert done.exit_code == 2 and done.output.startswith(f"error: {place} holds no run (") and words in done.output
    assert len(done.output.splitlines()) == 1


def test_a_report_of_a_run_that_is_not_finished_says_what_is_missing(tmp_path: Path) -> None:
    made = Made(tmp_path)
    write_request(made.run, made.config())
    path = str(made.run.path)

    def refused() -> str:
        done = CliRunner().invoke(main, ["report", path])
        assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
        page = made.run.report / "unfinished.html"
        assert done.stdout == (f"unfinished {page}\n" if page.exists() else "")
        return done.stderr

    missing, again = ", ".join(NAMES), f"adatsq-pipe run --run-dir {path}"
    assert refused() == f"error: {path} is not finished: {missing} not done; finish it with: {again}\n"
    assert not made.run.report.exists(), "nothing is there to be shown"
    for stage in NAMES[:4]:
        made.commit(stage, "u", complete=True)
    made.commit("search", "a", "b")
    manifest = made.manifest("search")
    manifest.fail("c", "Traceback\nValueError: no")
    said = refused()
    assert "is not finished: search (2 of 3 units), assemble, reference, evaluate not done;" in said
    assert "unit 'c' of search failed: ValueError: no" in said
    (made.manifest("solve").unit_folder("u") / "bytes").unlink()
    assert "unit 'u' of solve is damaged: a file is missing or has the wrong size" in refused()
    assert again in (made.run.report / "unfinished.html").read_text()
    (made.run.report / "report.html").touch()
    assert f"; {path}/report/report.html is of what was finished before; finish it with" in refused()
    beat = Beat(host="node1", pid=7, space="", beat=time.time())
    (made.run.path / ".holder.json").write_text(beat.text())
    assert f"process 7 on node1 is at it; watch it with: adatsq-pipe status {path} --watch" in refused()
