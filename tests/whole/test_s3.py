"""Whole runs in a bucket: the bytes of a run in a folder, through a slow door that fails, on several machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from adatsq_pipe.storage.errors import DamagedUnit, StorageError
from adatsq_pipe.storage.lease import lease
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.remote import open_remote
from adatsq_pipe.storage.rundir import RunDir
from tests import s3
from tests.whole import harness

pytestmark = [pytest.mark.run, pytest.mark.extended]

URL = "s3://bucket/runs/one"


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3.served() as port:
        yield port


@pytest.fixture
def bucket(server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Door]:
    """An empty bucket behind a door that this process, and those it starts, go through."""
    with s3.door(server, latency=0.005, failing=0.005) as door:
        for name, value in s3.environment(door.server_port).items():
            monkeypatch.setenv(name, value)
        _this_machine(tmp_path / "machine-a", monkeypatch)
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        if files.exists("bucket"):
            files.rm("bucket", recursive=True)
        files.mkdir("bucket")
        yield door


def _this_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on we are a machine whose mirrors are in `cache`."""
    monkeypatch.setenv("ADATSQ_PIPE_CACHE", str(cache))
    open_remote.cache_clear()
    fsspec.filesystem("s3").clear_instance_cache()


def _run(model: Path, *more: str, strike: str = "") -> subprocess.CompletedProcess[str]:
    arguments = ["run", "--run-dir", URL, *harness.tiny(Path("x"), model)[3:], *more]
    return harness.run(*arguments, strike=strike)


def _there(place: str) -> dict[str, bytes]:
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    root = f"bucket/runs/one/{place}".rstrip("/")
    return {path.removeprefix(root + "/"): files.cat_file(path) for path in files.find(root)}


def test_a_run_in_a_bucket_survives_its_machines(
    undisturbed: Path, tiny_flux: Path, bucket: s3.Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = _run(tiny_flux, strike="solve:3")
    assert died.returncode == -signal.SIGKILL, died.stderr
    kept = {name for name in _there("solve") if "/markers/" in name}
    assert len(kept) == 3
    _this_machine(tmp_path / "machine-b", monkeypatch)
    refused = _run(tiny_flux)
    assert refused.returncode == 1 and "its lock ends in" in refused.stderr
    lock = json.loads(_there("")["lock.json"])
    fsspec.filesystem("s3").pipe_file("bucket/runs/one/lock.json", json.dumps({**lock, "until": 0.0}).encode())
    done = _run(tiny_flux)
    assert done.returncode == 0, done.stderr
    assert "is taken over" in done.stderr and f"{URL}/model" in done.stdout
    assert bucket.counts["failed"] > 2, "the door did not fail often enough to have tried anything"
    model = {name: (undisturbed / "model" / name).read_bytes() for name in harness.digests(undisturbed / "model")}
    assert _there("model") == model
    assert json.loads(_there("report")["summary.json"])["quality"] == harness.quality(undisturbed)
    everything = b"".join(_there("").values())
    assert b"testing" not in everything, "a credential lies in the run directory"
    again = _run(tiny_flux)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stderr
    status = harness.run("status", "--run-dir", URL, "--model", str(tiny_flux))
    assert status.stdout.count(" done ") == 8, status.stdout
    assert harness.run("verify", "--run-dir", URL).returncode == 0


def test_workers_of_their_own_processes_fill_the_bucket(undisturbed: Path, tiny_flux: Path, bucket: s3.Door) -> None:
    done = _run(tiny_flux, "--executor", "ray", "--set", "cluster.workers=2")
    assert done.returncode == 0, done.stderr
    assert _there("model") == {
        n: (undisturbed / "model" / n).read_bytes() for n in harness.digests(undisturbed / "model")
    }
    for stage in ("capture", "search", "evaluate"):
        here, there = (
            {name.split("/", 1)[1] for name in names if "/markers/" in name}
            for names in (harness.digests(undisturbed / stage), _there(stage))
        )
        assert there == here, f"{stage}: other units than in a folder"
        marks = [json.loads(body) for name, body in _there(stage).items() if name.endswith("/markers/complete.json")]
        assert len(marks) == 1 and len(marks[0]["value"]) == len(there) - 1, f"{stage} vouches for other units"


def test_what_is_damaged_in_the_bucket_is_not_served(bucket: s3.Door) -> None:
    manifest = _unit()
    files = fsspec.filesystem("s3")
    files.pipe_file(f"bucket/runs/one/capture/{'ab' * 8}/units/a/0/bytes", b"jello")
    (manifest.unit_folder("a/0") / "bytes").unlink()
    with pytest.raises(DamagedUnit, match="digest"):
        manifest.verify("a/0")
    files.pipe_file(f"bucket/runs/one/capture/{'ab' * 8}/units/a/0/bytes", b"hell")
    assert manifest.missing(["a/0", "a/1"]) == ["a/1"]
    with pytest.raises(DamagedUnit, match=r"has 4 bytes|digest"):
        manifest.verify("a/0")


def test_what_is_damaged_in_the_mirror_is_fetched_again(bucket: s3.Door) -> None:
    manifest = _unit()
    (manifest.unit_folder("a/0") / "bytes").write_bytes(b"jello")
    assert manifest.verify("a/0").value == {"x": 1}
    assert (manifest.unit_folder("a/0") / "bytes").read_bytes() == b"hello"


def test_another_machine_sees_what_is_withdrawn_and_what_failed(
    bucket: s3.Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _unit()
    _this_machine(tmp_path / "machine-b", monkeypatch)
    other = RunDir.open(URL).manifest("capture", "ab" * 32)
    assert other.done("a/0") and list(other.units()) == ["a/0"]
    other.withdraw("a/0")
    other.open_unit("a/1")
    other.fail("a/1", "ValueError: no")
    _this_machine(tmp_path / "machine-a", monkeypatch)
    back = RunDir.open(URL).manifest("capture", "ab" * 32)
    assert not back.done("a/0") and list(back.units()) == [] and back.failures() == {"a/1": "ValueError: no"}


def _unit() -> Manifest:
    run = RunDir.open(URL)
    run.create()
    manifest = run.manifest("capture", "ab" * 32)
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"hello")
    manifest.commit("a/0", value={"x": 1})
    return manifest


def test_a_lease_is_put_off_lost_and_given_back(bucket: s3.Door) -> None:
    remote, said = open_remote(URL), list[str]()
    with lease(remote, said.append, seconds=6.0):
        time.sleep(8)
        with pytest.raises(StorageError, match=f"in use by process {os.getpid()}"), lease(remote, said.append):
            pass
        for _ in range(20):
            remote.files.pipe_file(f"{remote.base}/lock.json", b'{"token": "x", "pid": 1, "host": "h", "until": 9e9}')
            time.sleep(1)
            if said:
                break
    assert said == [f"{URL} was taken over by process 1 on h"]
    assert "lock.json" in _there(""), "another's lock is not ours to remove"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://no-such-bucket/run", "cannot be read|cannot be written"),
        ("s3://user:secret@bucket/run", "never in the URL"),
        ("nonsense://x/y", "fsspec"),
    ],
)
def test_a_bad_url_is_one_line(url: str, said: str, bucket: s3.Door, tiny_flux: Path) -> None:
    done = harness.run("run", "--run-dir", url, *harness.tiny(Path("x"), tiny_flux)[3:])
    assert done.returncode == 1 and "Traceback" not in done.stderr and "secret" not in done.stderr, done.stderr
    assert any(part in harness.last_line(done.stderr) for part in said.split("|")), done.stderr


def test_units_are_listed_not_asked_for_one_by_one(bucket: s3.Door) -> None:
    manifest = _unit()
    names = [f"unit/{i:03d}" for i in range(40)]
    for name in names:
        manifest.open_unit(name)
        manifest.commit(name)
    before = bucket.counts["passed"]
    assert manifest.missing([*names, *(f"other/{i}" for i in range(500))]) == [f"other/{i}" for i in range(500)]
    assert bucket.counts["passed"] - before < 10


def test_what_was_listed_at_opening_is_listed_again_only_after_work_was_given_out(bucket: s3.Door) -> None:
    mine = _unit()
    opened = RunDir.open(URL).manifest("capture", "ab" * 8)
    before = bucket.counts["passed"]
    assert opened.missing(["a/0", "a/1"]) == ["a/1"]
    assert bucket.counts["passed"] == before, "the opening's listing was good enough"
    open_remote.cache_clear()
    other = RunDir.at(URL).manifest("capture", "ab" * 8)
    other.open_unit("a/1")
    other.commit("a/1")
    assert mine.missing(["a/0", "a/1"]) == [], "what another process finished since is seen"
    assert bucket.counts["passed"] > before
