"""The lock of a run directory at a URL: one holder at a time, and a dead holder's lock expires."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from adatsq_pipe.storage import lease as module
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.lease import holder, lease
from adatsq_pipe.storage.remote import Remote
from tests.support.memory_store import RecordingStore, remote_of

LOCK = "/run/lock.json"


@pytest.fixture
def store() -> RecordingStore:
    return RecordingStore()


@pytest.fixture
def remote(store: RecordingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    monkeypatch.setattr(module, "SETTLE", 0.01)
    return remote_of(store, tmp_path)


def _ignore(message: str) -> None:
    pass


def _leave(store: RecordingStore, until: float, token: str = "theirs") -> None:
    body = {"token": token, "pid": 7, "host": "elsewhere", "until": until}
    store.pipe_file(LOCK, json.dumps(body).encode())


def test_a_lock_says_who_holds_it_and_until_when_and_is_removed(remote: Remote, store: RecordingStore) -> None:
    before = time.time()
    with lease(remote, _ignore, seconds=100) as message:
        body = json.loads(store.cat_file(LOCK))
        assert message == "" and (body["pid"], body["host"]) == (os.getpid(), socket.gethostname())
        assert before + 100 <= body["until"] <= time.time() + 100 and len(body["token"]) == 32
    assert not store.exists(LOCK)


def test_the_holder_is_alive_until_its_lease_ends(remote: Remote, store: RecordingStore) -> None:
    assert holder(remote) is None
    with lease(remote, _ignore):
        held = holder(remote)
        assert held is not None and (held.host, held.pid) == (socket.gethostname(), os.getpid())
        assert held.is_alive(time.time()) and not held.is_alive(time.time() + 61)
    assert holder(remote) is None
    _leave(store, time.time() - 5)
    left = holder(remote)
    assert left is not None and (left.host, left.pid) == ("elsewhere", 7) and not left.is_alive(time.time())


def test_a_lock_is_not_read_from_a_cache(
    remote: Remote, store: RecordingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, cat = [], store.cat_file

    def recorded(path: str, **options: int) -> bytes:
        reads.append(store.calls[-1:])
        return cat(path, **options)

    monkeypatch.setattr(store, "cat_file", recorded)
    with lease(remote, _ignore):
        pass
    assert reads == [[("invalidate_cache",)]] * 2


def test_a_lock_is_removed_after_an_error_too(remote: Remote, store: RecordingStore) -> None:
    with pytest.raises(RuntimeError, match="stop"), lease(remote, _ignore):
        raise RuntimeError("stop")
    assert not store.exists(LOCK)


def test_a_second_run_is_refused_and_names_the_holder(remote: Remote, store: RecordingStore) -> None:
    _leave(store, time.time() + 50)
    body = store.cat_file(LOCK)
    with pytest.raises(StorageError, match=r"in use by process 7 on elsewhere.*its lock ends in (49|50) s"):
        lease(remote, _ignore).__enter__()
    assert store.cat_file(LOCK) == body


def test_of_two_that_come_at_once_one_is_refused(
    remote: Remote, store: RecordingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = module._read

    def late(remote: Remote) -> module._Lock | None:
        monkeypatch.setattr(module, "_read", read)
        _leave(store, time.time() + 50)
        return None

    monkeypatch.setattr(module, "_read", late)
    with pytest.raises(StorageError, match="in use by process 7"):
        lease(remote, _ignore).__enter__()
    assert json.loads(store.cat_file(LOCK))["token"] == "theirs"


@pytest.mark.parametrize("body", [None, b"{", b"[]", b'{"token": "x"}'])
def test_a_lock_that_has_ended_or_says_nothing_is_taken_over(
    body: bytes | None, remote: Remote, store: RecordingStore
) -> None:
    _leave(store, time.time() - 5) if body is None else store.pipe_file(LOCK, body)
    with lease(remote, _ignore) as message:
        assert json.loads(store.cat_file(LOCK))["pid"] == os.getpid()
        assert message.startswith(
            "the lock of process 7 on elsewhere ended 5 s ago" if body is None else "the lock of process ?"
        )
    assert not store.exists(LOCK)


def test_a_lock_that_two_take_over_belongs_to_the_one_that_wrote_last(
    remote: Remote, store: RecordingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _leave(store, time.time() - 5)
    monkeypatch.setattr("time.sleep", lambda seconds: _leave(store, time.time() + 50, token="third"))
    with pytest.raises(StorageError, match="just taken over by another run"):
        lease(remote, _ignore).__enter__()
    assert json.loads(store.cat_file(LOCK))["token"] == "third"


def _wait(condition: threading.Event) -> None:
    assert condition.wait(60)


def test_a_holder_renews_its_lock_while_it_lives(
    remote: Remote, store: RecordingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_off, pipe = threading.Event(), store.pipe_file
    ends: list[float] = []

    def recorded(path: str, value: bytes, **options: str) -> None:
        pipe(path, value, **options)
        ends.append(json.loads(value)["until"])
        if len(ends) == 3:
            put_off.set()

    monkeypatch.setattr(store, "pipe_file", recorded)
    with lease(remote, _ignore, seconds=0.2):
        _wait(put_off)
    assert ends == sorted(set(ends)) and not store.exists(LOCK)


def test_a_holder_that_lost_its_lock_hears_of_it_and_leaves_it_alone(remote: Remote, store: RecordingStore) -> None:
    lost, messages = threading.Event(), []

    def note(message: str) -> None:
        messages.append(message)
        lost.set()

    with lease(remote, note, seconds=0.2):
        _leave(store, time.time() + 50)
        _wait(lost)
    assert messages == ["memory://run was taken over by process 7 on elsewhere"]
    assert json.loads(store.cat_file(LOCK))["token"] == "theirs"


def test_a_store_that_cannot_be_reached_for_a_moment_loses_no_lock(
    remote: Remote, store: RecordingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    back, cat, refusals = threading.Event(), store.cat_file, [OSError("no route"), OSError("no route")]

    def flaky(path: str, **options: int) -> bytes:
        if refusals:
            raise refusals.pop()
        back.set()
        return cat(path, **options)

    with lease(remote, _ignore, seconds=0.2):
        monkeypatch.setattr(store, "cat_file", flaky)
        _wait(back)
    assert not refusals and not store.exists(LOCK)


def test_a_lock_is_renewed_four_times_within_its_seconds(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []

    class RecordedEvent(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return super().wait(timeout)

    monkeypatch.setattr(module.threading, "Event", RecordedEvent)
    with lease(remote, _ignore, seconds=60):
        pass
    assert 15.0 in waits, "the other waits are those of starting a thread"


def test_a_renewal_under_way_does_not_bring_the_lock_back(
    remote: Remote, store: RecordingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, release, written, pipe = threading.Event(), threading.Event(), threading.Event(), store.pipe_file

    def slow(path: str, value: bytes, **options: str) -> None:
        under_way.set()
        threading.Timer(0.3, release.set).start()
        _wait(release)
        pipe(path, value, **options)
        written.set()

    with lease(remote, _ignore, seconds=0.2):
        monkeypatch.setattr(store, "pipe_file", slow)
        _wait(under_way)
    _wait(written)
    assert not store.exists(LOCK)
