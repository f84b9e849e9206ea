"""What `status` prints of run directories written by hand, and how `--watch` ends."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem
from rich.console import Console

from adatsq_pipe.pipeline.commands import watch
from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.commands.layout import print_json
from adatsq_pipe.pipeline.commands.look import Choice, duration, look, rate_text
from adatsq_pipe.pipeline.request import write_request
from adatsq_pipe.storage import heartbeat
from adatsq_pipe.storage.heartbeat import Beat
from adatsq_pipe.storage.remote import open_remote
from adatsq_pipe.storage.rundir import RunDir
from tests.pipeline.test_plan import NAMES, Made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path)
    write_request(made.run, made.config())
    return made


def call(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, list(arguments))
    return done.exit_code, done.stdout, done.stderr


def finish(made: Made, *stages: str) -> None:
    for stage in stages:
        made.commit(stage, "u", complete=True)


def test_the_run_is_an_argument_or_an_option(made: Made) -> None:
    made.commit("capture", "a")
    run = str(made.run.path)
    for command in ("status", "why", "verify"):
        named, option = call(command, run), call(command, "--run-dir", run)
        assert named == option and named[0] == 0
        assert call(command, run, "--run-dir", run) == named
        code, _, error = call(command, run, "--run-dir", "another")
        assert code == 2 and "name one run directory" in error


def test_a_line_ends_with_what_the_stage_takes(made: Made) -> None:
    """Of two units, the second by a worker that held less; each has four bytes."""
    manifest = made.run.manifest("capture", made.steps()["capture"].fingerprint)
    for unit, held in (("a", 812e6), ("b", 640e6)):
        (manifest.open_unit(unit) / "bytes").write_text("four")
        manifest.commit(unit, seconds={"resident": held})
    _, output, _ = call("status", str(made.run.path))
    assert f"   {manifest.folder.name}   8 B on disk, 812.00 MB of memory at most\n" in output
    row = json.loads(call("status", str(made.run.path), "--json")[1])[0]
    assert (row["stage"], row["bytes"], row["memory"]) == ("capture", 8, 812_000_000)


def test_a_line_says_what_is_done_failed_and_damaged_and_the_last_what_to_do(made: Made) -> None:
    manifest = made.commit("capture", "a", "b")
    manifest.fail("c", "ValueError: no")
    (manifest.unit_folder("b") / "bytes").unlink()
    code, output, _ = call("status", str(made.run.path))
    fingerprint = made.steps()["capture"].fingerprint[:16]
    assert code == 0 and f"capture   damaged  1 units, 1 failed, 1 damaged   {fingerprint}   1 B on disk\n" in output
    assert "          c failed: ValueError: no\n" in output
    assert "          b is damaged: a file is missing or has the wrong size\n" in output
    assert "run       failed: no process holds it; 1 unit failed; 1 unit is damaged; not done: capture" in output


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("failed", 1), ("stopped", 75)])
def test_a_watch_ends_as_the_run_ended(state: str, code: int, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(made, *(NAMES if state == "done" else ["capture"]))
    if state == "failed":
        made.manifest("fisher").fail("x", "ValueError: no")
    ended, output, _ = call("status", str(made.run.path), "--watch", "--interval", "0.1")
    assert ended == code and "capture: done, 1 units" in output and f"run: {state}, " in output
    assert len(output.splitlines()) == len({line[9:] for line in output.splitlines()}), "no line twice"


def test_a_watch_shows_each_change_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = made.run.path / ".holder.json"
    holder.write_text(Beat(host="node1", pid=7, space="", since=0.0, beat=time.time()).text())
    changes = [
        lambda: None,
        lambda: made.commit("capture", "a"),
        lambda: None,
        lambda: made.manifest("capture").fail("b", "OSError: gone"),
        holder.unlink,
    ]
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: changes.pop(0)() if changes else None)
    code, output, _ = call("status", str(made.run.path), "--watch")
    lines = [line[9:] for line in output.splitlines()]
    assert code == 1 and lines[0] == "run: running, process 7 on node1 holds it"
    assert lines[1:3] == ["capture: partial, 1 units", "capture: partial, 1 units, 1 failed"]
    assert "capture b failed on" in lines[3] and lines[3].endswith("OSError: gone")
    assert lines[4].startswith("run: failed, no process holds it; 1 unit failed")
    assert len(lines) == 5


def test_a_watch_as_json_is_a_document_a_line(made: Made) -> None:
    finish(made, "capture")
    code, output, _ = call("status", str(made.run.path), "--watch", "--json", "--interval", "0.1")
    (found,) = [json.loads(line) for line in output.splitlines()]
    assert (
        code == 75 and found["state"] == "stopped" and [s["done"] for s in found["stages"]] == [1, 0, 0, 0, 0, 0, 0, 0]
    )


def test_ctrl_c_leaves_without_a_traceback(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupted)
    code, _, error = call("status", str(made.run.path), "--watch")
    assert (code, error) == (130, "stopped watching; the run is as it was\n")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", "0.01"])
def test_an_interval_that_is_none_is_refused(seconds: str, made: Made) -> None:
    code, _, error = call("status", str(made.run.path), "--watch", "--interval", seconds)
    assert code == 2 and "--interval" in error and len(error.splitlines()) <= 4


def test_an_interval_is_for_watch(made: Made) -> None:
    code, _, error = call("status", str(made.run.path), "--interval", "2")
    assert code == 2 and "--interval is for --watch" in error


def test_without_its_model_folder_a_run_is_shown_as_it_was_recorded(made: Made) -> None:
    step = made.steps()["capture"]
    made.run.record_identity("capture", step.fingerprint, dict(step.identity))
    finish(made, "capture")
    made.model.rename(made.model.with_name("elsewhere"))
    code, output, error = call("status", str(made.run.path))
    assert (code, error) == (0, "") and f"capture   done     1 units   {step.fingerprint[:16]}" in output
    assert f"note      the model folder {made.model} is not on this machine: shown are" in output


def test_without_its_settings_a_run_is_shown_as_it_was_recorded(made: Made) -> None:
    step = made.steps()["capture"]
    made.run.record_identity("capture", step.fingerprint, dict(step.identity))
    finish(made, "capture")
    (made.run.path / "config.toml").unlink()
    code, output, _ = call("status", str(made.run.path))
    assert code == 0 and f"capture   done     1 units   {step.fingerprint[:16]}" in output
    assert (
        "note      config.toml is missing (a comparison has none): shown are the stages that were recorded last"
        in output
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (18720, "5 h 12 min"), (273600, "3 d 4 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(2.25, "2.2/s"), (0.5, "30.0/min"), (0.001, "3.6/h"), (0.00001, "0.9/day"), (None, "")]
)
def test_rates_are_in_the_unit_that_fits(rate: float | None, text: str) -> None:
    assert rate_text(rate) == text


def test_why_as_json_has_the_reasons_of_what_would_run(made: Made) -> None:
    finish(made, "capture")
    code, output, _ = call("why", str(made.run.path), "--json")
    found = {row["stage"]: row for row in json.loads(output)}
    assert code == 0 and list(found) == NAMES
    assert (found["capture"]["runs"], found["capture"]["reasons"]) == (False, [])
    assert (found["fisher"]["runs"], found["fisher"]["reasons"]) == (True, ["it has not run yet"])
    assert found["hessian"]["reasons"] == ["fisher would run first"]


def test_verify_as_json_names_what_is_damaged(made: Made) -> None:
    manifest = made.commit("capture", "a", "b")
    assert json.loads(call("verify", str(made.run.path), "--json")[1]) == {"checked": 2, "damaged": []}
    (manifest.unit_folder("b") / "bytes").write_text("B")
    code, output, error = call("verify", str(made.run.path), "--json")
    (found,) = json.loads(output)["damaged"]
    assert code == 1 and (found["stage"], found["unit"]) == ("capture", "b") and "digest in its marker" in found["what"]
    assert error.startswith("error: 1 of 2 units are damaged")


def test_numbers_that_json_does_not_have_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [math.inf, 1.5], "b": (math.nan,), "c": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": [None], "c": "x"}


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A run directory in a store in memory, which other tests do not see, with its mirror below tmp_path."""
    monkeypatch.setenv("ADATSQ_PIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    open_remote.cache_clear()
    yield "memory://watched/run"
    heartbeat.rest()
    open_remote.cache_clear()


def test_a_run_in_a_store_is_watched_there(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path)
    made.run = RunDir.open(url)
    made.run.create()
    write_request(made.run, made.config())
    finish(made, "capture")
    made.manifest("fisher").fail("x", "Traceback\nValueError: no")
    files, looked = MemoryFileSystem(), list[str]()
    lock = {"token": "t", "pid": 7, "host": "node1", "until": time.time() + 50}
    beat = Beat(host="node2", pid=3, space="", stage="fisher", fingerprint="", unit="y", beat=time.time())
    files.pipe_file(f"{url}/lock.json", json.dumps(lock).encode())
    files.pipe_file(f"{url}/workers/node2-3.json", beat.text().encode())

    def slept(seconds: float) -> None:
        looked.append(f"{seconds:.0f}")
        if files.exists(f"{url}/lock.json"):
            files.rm(f"{url}/lock.json")

    monkeypatch.setattr(watch.time, "sleep", slept)
    code, output, _ = call("status", url, "--watch")
    lines = [line[9:] for line in output.splitlines()]
    assert code == 1 and looked == ["15", "15"], "two looks in a row that found no holder"
    assert "capture: done, 1 units" in lines and "run: running, process 7 on node1 holds it" in lines
    assert "worker node2-3 is there" in lines and lines[-1].startswith(
        "run: failed, no process holds it; 1 unit failed"
    )
    assert any(
        line.startswith("fisher x failed on ") and line.endswith("ValueError: no") for line in (x[9:] for x in lines)
    )
    disk = sum(len(files.cat_file(name)) for name in files.find(url))
    assert json.loads(call("status", url, "--watch", "--json")[1])["disk_bytes"] == disk


@pytest.mark.parametrize("width", [110, 64])
def test_a_terminal_shows_stages_whole_with_bars_where_there_is_room(width: int, made: Made) -> None:
    finish(made, "capture")
    made.commit("reference", "a")
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(watch.drawn(look(made.run, Choice()), bars=width >= watch.WIDE))
    shown = console.export_text()
    assert all(name in shown for name in NAMES) and "missing" in shown and "partial" in shown
    assert ("\u2501" in shown) == (width == 110) and "0 workers, " in shown
    assert max(map(len, shown.splitlines())) <= width
