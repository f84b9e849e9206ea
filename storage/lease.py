"""A lock on a run directory at a URL: an object with an end, which its holder puts off while it lives.

Made by a put that fails where an object is already (atomic on S3 and GCS). One whose end has passed is taken over:
overwritten, and believed only if it still says so a moment later. Clocks must agree to within the lease.
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
from typing import Any

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.remote import Remote

NAME = "lock.json"
SECONDS = 60.0
SETTLE = 1.0
"""Seconds after which a lock that was taken over is looked at again."""


@contextmanager
def lease(remote: Remote, lost: Callable[[str], None], seconds: float = SECONDS) -> Iterator[str]:
    """Hold `remote` for one run; yields what there is to say of how it was got ("" if nothing).

    `lost` is called, from another thread, should somebody else hold it before the body ends.
    """
    own = uuid.uuid4().hex
    said = _take(remote, own, seconds)
    over = threading.Event()
    keeper = threading.Thread(target=_keep, args=(remote, own, seconds, over, lost), daemon=True)
    keeper.start()
    try:
        yield said
    finally:
        over.set()
        keeper.join()
        if (_read(remote) or {}).get("token") == own:
            remote.files.rm(_place(remote))


def _place(remote: Remote) -> str:
    return f"{remote.base}/{NAME}"


def _body(own: str, seconds: float) -> bytes:
    end = time.time() + seconds
    return json.dumps({"token": own, "pid": os.getpid(), "host": socket.gethostname(), "until": end}).encode()


def _read(remote: Remote) -> dict[str, Any] | None:
    """What the lock says; None if there is none. A lock that cannot be read counts as ended long ago."""
    remote.files.invalidate_cache()
    try:
        found = json.loads(remote.files.cat_file(_place(remote)))
        return {"pid": "?", "host": "?", **found, "until": float(found["until"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return {"token": "", "pid": "?", "host": "?", "until": 0.0}


def _take(remote: Remote, own: str, seconds: float) -> str:
    found = _read(remote)
    if found is None:
        try:
            remote.files.pipe_file(_place(remote), _body(own, seconds), mode="create")
            return ""
        except FileExistsError:
            found = _read(remote) or {"pid": "?", "host": "?", "until": time.time() + seconds}
    left = found["until"] - time.time()
    holder = f"process {found['pid']} on {found['host']}"
    if left > 0:
        raise StorageError(
            f"{remote.url} is in use by {holder}; wait for it or name another --run-dir "
            f"(if it is dead, its lock ends in {left:.0f} s)"
        )
    remote.files.pipe_file(_place(remote), _body(own, seconds))
    time.sleep(SETTLE)
    if (_read(remote) or {}).get("token") != own:
        raise StorageError(f"{remote.url} has just been taken over by another run; wait for it")
    return f"the lock of {holder} ended {-left:.0f} s ago: it is taken over"


def _keep(remote: Remote, own: str, seconds: float, over: threading.Event, lost: Callable[[str], None]) -> None:
    while not over.wait(seconds / 4):
        try:
            found = _read(remote)
            if found is not None and found.get("token") != own:
                lost(f"{remote.url} was taken over by process {found['pid']} on {found['host']}")
                return
            remote.files.pipe_file(_place(remote), _body(own, seconds))
        except OSError:
            continue
