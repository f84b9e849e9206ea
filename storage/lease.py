"""The lock of a run directory at a URL: an object with an expiry time, which its holder renews.

It is created by a put that fails if the object exists (atomic on S3 and GCS). An expired lock is overwritten, and the
new holder reads it back a moment later to see that no other run overwrote it too. Clocks must agree to within the
lease's seconds.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.heartbeat import Beat
from adatsq_pipe.storage.remote import Remote

NAME = "lock.json"
SECONDS = 60.0
SETTLE = 1.0
"""Seconds between taking over an expired lock and reading it back."""


@dataclass(frozen=True)
class _Lock:
    """What the lock object says; `until` is its expiry time (Unix seconds)."""

    token: str
    pid: object
    host: object
    until: float

    @property
    def holder(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def lease(remote: Remote, on_lost: Callable[[str], None], seconds: float = SECONDS) -> Iterator[str]:
    """Hold `remote` for one run. Yields a message if an expired lock was taken over, else "".

    Another thread renews the lock, and calls `on_lost` with a message if another run takes it before the body ends.
    Raises StorageError if another run holds it.
    """
    token = uuid.uuid4().hex
    message = _take(remote, token, seconds)
    done = threading.Event()
    renewal = threading.Thread(target=_renew, args=(remote, token, seconds, done, on_lost), daemon=True)
    renewal.start()
    try:
        yield message
    finally:
        done.set()
        renewal.join()
        if _holds(_read(remote), token):
            remote.files.rm(_path(remote))


def holder(remote: Remote) -> Beat | None:
    """The process that holds the lock, or that held it when it was killed; None if there is no lock."""
    lock = _read(remote)
    if lock is None:
        return None
    try:
        return Beat(host=str(lock.host), pid=int(str(lock.pid)), space="", beat=lock.until - SECONDS)
    except ValueError:
        return None


def _path(remote: Remote) -> str:
    return f"{remote.base}/{NAME}"


def _body(token: str, seconds: float) -> bytes:
    until = time.time() + seconds
    return json.dumps({"token": token, "pid": os.getpid(), "host": socket.gethostname(), "until": until}).encode()


def _holds(lock: _Lock | None, token: str) -> bool:
    return lock is not None and lock.token == token


def _read(remote: Remote) -> _Lock | None:
    """The present lock, None if there is none. An unreadable lock counts as expired long ago."""
    remote.files.invalidate_cache()
    try:
        body = json.loads(remote.files.cat_file(_path(remote)))
        return _Lock(str(body.get("token")), body.get("pid", "?"), body.get("host", "?"), float(body["until"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return _Lock("", "?", "?", 0.0)


def _take(remote: Remote, token: str, seconds: float) -> str:
    lock = _read(remote)
    if lock is None:
        try:
            remote.files.pipe_file(_path(remote), _body(token, seconds), mode="create")
            return ""
        except FileExistsError:
            lock = _read(remote) or _Lock("", "?", "?", time.time() + seconds)
    remaining = lock.until - time.time()
    if remaining > 0:
        raise StorageError(
            f"{remote.url} is in use by {lock.holder}; wait for it or name another --run-dir "
            f"(if it is dead, its lock ends in {remaining:.0f} s)"
        )
    remote.files.pipe_file(_path(remote), _body(token, seconds))
    time.sleep(SETTLE)
    if not _holds(_read(remote), token):
        raise StorageError(f"{remote.url} was just taken over by another run; wait for it")
    return f"the lock of {lock.holder} ended {-remaining:.0f} s ago: it is taken over"


def _renew(remote: Remote, token: str, seconds: float, done: threading.Event, on_lost: Callable[[str], None]) -> None:
    while not done.wait(seconds / 4):
        try:
            lock = _read(remote)
            if lock is not None and lock.token != token:
                on_lost(f"{remote.url} was taken over by {lock.holder}")
                return
            remote.files.pipe_file(_path(remote), _body(token, seconds))
        except OSError:
            continue
