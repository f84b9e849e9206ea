"""Workers say what they do in small files that nothing depends on, and that a minute makes worthless."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.storage import heartbeat
from adatsq_pipe.storage.heartbeat import Beat
from adatsq_pipe.storage.rundir import RunDir
from tests.support.memory_store import RecordingStore, remote_of

SHA = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def rested() -> Iterator[None]:
    yield
    heartbeat.rest()


def eventually(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def beat(**changes: Any) -> Beat:
    return Beat(**{"host": "node7", "pid": 1, "space": "", "since": 100.0, "beat": 1000.0, **changes})


def test_a_worker_says_where_it_is_what_it_does_and_since_when(tmp_path: Path) -> None:
    path, before = tmp_path / "workers" / f"{socket.gethostname()}-{os.getpid()}.json", time.time()
    with heartbeat.at_work(tmp_path, None, stage="solve", fingerprint=SHA, unit="layer/a"):
        assert eventually(path.exists)
        body = json.loads(path.read_text())
    assert (body["host"], body["pid"]) == (socket.gethostname(), os.getpid())
    assert (body["stage"], body["fingerprint"], body["unit"]) == ("solve", "0123456789abcdef", "layer/a")
    assert before <= body["since"] <= body["beat"] <= time.time()
    (found,) = heartbeat.workers(tmp_path, None)
    assert (found.name, found.unit) == (path.stem, "layer/a") and found.is_alive(time.time())


def test_a_worker_that_has_finished_its_unit_works_on_none(tmp_path: Path) -> None:
    with heartbeat.at_work(tmp_path, None, stage="solve", fingerprint=SHA, unit="layer/a"):
        pass
    assert eventually(lambda: [found.unit for found in heartbeat.workers(tmp_path, None)] == [""])


def test_a_unit_that_is_written_beside_another_leaves_that_as_the_work(tmp_path: Path) -> None:
    with heartbeat.at_work(tmp_path, None, stage="capture", fingerprint=SHA, unit="trajectory/000"):
        with heartbeat.at_work(tmp_path, None, stage="capture", fingerprint=SHA, unit="activations/000-000"):
            pass
        assert eventually(lambda: [w.unit for w in heartbeat.workers(tmp_path, None)] == ["trajectory/000"])
    assert eventually(lambda: [w.unit for w in heartbeat.workers(tmp_path, None)] == [""])


def test_a_thousand_quick_units_cost_hardly_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(heartbeat, "PAUSE", 1000.0)
    monkeypatch.setattr(heartbeat, "write_text", lambda path, text: written.append(path))
    for i in range(1000):
        with heartbeat.at_work(tmp_path, None, stage="search", fingerprint=SHA, unit=f"path/{i}"):
            pass
    assert eventually(lambda: bool(written)) and len(written) == 1


def test_a_long_unit_is_confirmed_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(heartbeat, "PAUSE", 0.0)
    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    monkeypatch.setattr(heartbeat, "write_text", lambda path, text: written.append(text))
    with heartbeat.at_work(tmp_path, None, stage="solve", fingerprint=SHA, unit="layer/a"):
        assert eventually(lambda: len(written) > 5)
    bodies = [json.loads(text) for text in written[1:5]]
    assert {body["unit"] for body in bodies} == {"layer/a"} and len({body["since"] for body in bodies}) == 1
    assert sorted(body["beat"] for body in bodies) == [body["beat"] for body in bodies]


def test_a_run_directory_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    with heartbeat.at_work(tmp_path / "gone", None, stage="solve", fingerprint=SHA, unit="layer/a"):
        heartbeat.rest()
    assert not (tmp_path / "gone").exists()


def test_what_keeps_a_sign_of_life_from_being_written_ends_no_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def full(path: Path, text: str) -> None:
        tries.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(heartbeat, "write_text", full)
    with heartbeat.at_work(tmp_path, None, stage="solve", fingerprint=SHA, unit="layer/a"):
        assert eventually(lambda: bool(tries))


@pytest.mark.parametrize(("age", "alive"), [(0.0, True), (59.0, True), (61.0, False), (-30.0, True)])
def test_a_sign_of_life_counts_for_a_minute(age: float, alive: bool) -> None:
    assert beat(beat=1000.0 - age).is_alive(1000.0) is alive


def test_a_process_of_this_machine_that_is_gone_is_gone_at_once() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = {"host": socket.gethostname(), "space": heartbeat.process_space()}
    assert not beat(**here, pid=ended.pid).is_alive(1000.0)
    assert beat(**here, pid=os.getpid()).is_alive(1000.0)
    assert beat(host="elsewhere", space=here["space"], pid=ended.pid).is_alive(1000.0)
    assert beat(host=here["host"], space="of a container", pid=ended.pid).is_alive(1000.0)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "7", '{"host": "a", "pid": "x", "since": 1, "beat": 1}', "[" * 100_000]
)
def test_a_file_that_is_none_of_ours_is_passed_over(text: str, tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "a-1.json").write_text(text)
    (tmp_path / "workers" / "b-2.json").write_text(beat(host="b", pid=2).text())
    assert [found.name for found in heartbeat.workers(tmp_path, None)] == ["b-2"]


def test_in_a_store_a_sign_of_life_is_an_object(tmp_path: Path) -> None:
    store = RecordingStore()
    remote = remote_of(store, tmp_path)
    with heartbeat.at_work(tmp_path, remote, stage="solve", fingerprint=SHA, unit="layer/a"):
        assert eventually(lambda: bool(store.store))
    (name,) = store.contents()
    assert name == f"/run/workers/{socket.gethostname()}-{os.getpid()}.json" and not (tmp_path / "workers").exists()
    remote.refresh()
    assert [found.unit for found in heartbeat.workers(tmp_path, remote)] == ["layer/a"]
    heartbeat.rest()
    heartbeat.remove_all(tmp_path, remote)
    assert store.contents() == {} and heartbeat.workers(tmp_path, remote) == []


def test_who_holds_a_run_is_known_while_it_does_and_a_killed_holder_is_gone(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    assert run.holder() is None
    with run.lock():
        held = run.holder()
        assert held is not None and held.pid == os.getpid() and held.is_alive(time.time())
        text = (run.path / ".holder.json").read_text()
    assert run.holder() is None
    ended = subprocess.Popen(["true"])
    ended.wait()
    (run.path / ".holder.json").write_text(json.dumps({**json.loads(text), "pid": ended.pid}))
    left = run.holder()
    assert left is not None and left.pid == ended.pid and not left.is_alive(time.time())


def test_a_run_that_ends_takes_the_signs_of_life_with_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    (run.path / "workers").mkdir()
    (run.path / "workers" / "of-a-killed-run.json").write_text("{}")
    with run.lock():
        assert not (run.path / "workers").exists()
        with heartbeat.at_work(run.path, None, stage="solve", fingerprint=SHA, unit="layer/a"):
            assert eventually(lambda: bool(run.workers()))
    time.sleep(0.05)
    assert not (run.path / "workers").exists() and run.workers() == []
