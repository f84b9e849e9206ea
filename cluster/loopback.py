"""A local Ray that only this machine can reach."""

from __future__ import annotations

import os


def bind() -> None:
    """Make a Ray that this process starts later listen on 127.0.0.1 only. Call this before Ray is first imported.

    On Linux, Ray's processes listen on all interfaces by default. Ray names the switch after the systems where it
    defaults to off. With it, no other machine can join.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
