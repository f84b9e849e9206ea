"""Where a local Ray keeps its sockets: in a folder whose path is short enough for them.

The path of a Unix socket has 107 bytes at most. Ray puts its own below TMPDIR, in a folder named after the time, and
schedulers and notebooks often set a TMPDIR that is too long for that.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from adatsq_pipe.cluster.errors import ClusterUnreachable

LONGEST = 103
"""Bytes of a socket's path that every system allows (Linux: 107)."""
BELOW = "/ray/session_2000-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""What Ray adds to the folder, with a process number of seven digits."""
SHORT = ("/tmp", "/var/tmp", "/dev/shm", "~")
"""Folders to take instead."""


def of_ray() -> str:
    """The folder below which Ray puts its sessions by itself."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def fits(folder: str) -> bool:
    """Whether the path of a socket of a session below the folder is short enough."""
    return len(os.fsencode(os.path.abspath(folder) + BELOW)) <= LONGEST


@contextmanager
def session_folder() -> Iterator[str | None]:
    """The folder to name to Ray, removed in the end; None where its own is short enough.

    Raises ClusterUnreachable if no folder is.
    """
    if fits(of_ray()):
        yield None
        return
    folder = _made()
    try:
        yield os.path.join(folder, "ray")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _made() -> str:
    for place in map(os.path.expanduser, SHORT):
        if not fits(os.path.join(place, "ray-12345678")):
            continue
        try:
            return tempfile.mkdtemp(prefix="ray-", dir=place)
        except OSError:
            continue
    raise ClusterUnreachable(
        f"Ray cannot start: the paths of its sockets below {of_ray()} are longer than {LONGEST} bytes; set RAY_TMPDIR "
        "to a folder with a short path, or run without Ray: --executor inline"
    )
