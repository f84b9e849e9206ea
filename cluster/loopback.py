"""A Ray of one's own that listens to this machine only."""

from __future__ import annotations

import os


def bind() -> None:
    """Have a Ray that this process starts later listen on 127.0.0.1 alone. Call before Ray is first imported.

    By default every process of a Ray listens on all interfaces of a Linux machine. Ray's name for the switch is that of
    the systems where it is off by default; a Ray started so takes in no other machine.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
