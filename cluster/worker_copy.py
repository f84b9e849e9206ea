"""What Ray starts in place of Python for a worker: it asks the template for a copy of itself, and ends with that copy.

Without an answer it becomes the Python that Ray asked for. Run as a file, by a Python that imports nothing else.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

STARTED = b"1"
"""The template's answer when the copy has started."""
LENGTH = 8
"""Bytes of the number that says how long the request is."""
PATIENCE = 30.0
"""Seconds to wait for the template's answer. Ray gives up a worker that has not registered after 60."""


def copied(path: str, command: Sequence[str]) -> bool:
    """Ask the template at the socket `path` for a worker that runs `command` (a script and its arguments) with what
    this process was given (environment, folder, streams, priorities), and wait for its end. False if there was none."""
    asked = {
        "command": list(command),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "niceness": os.nice(0),
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text("utf-8"),
    }
    request = json.dumps(asked).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect(path)
            socket.send_fds(connection, [len(request).to_bytes(LENGTH, "big")], [0, 1, 2])
            connection.sendall(request)
            if connection.recv(1) != STARTED:
                return False
        except OSError:
            return False
        connection.settimeout(None)
        with suppress(OSError):
            connection.recv(1)  # the copy says nothing: its end closes the connection
    return True


def main() -> None:
    """Called with the socket's path and the command."""
    path, *command = sys.argv[1:]
    if not copied(path, command):
        os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
