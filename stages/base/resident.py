"""Main memory that this process held at most, between two questions. Imports nothing but the standard library."""

from __future__ import annotations

import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_UNIT = 1 if sys.platform == "darwin" else 1024
"""Of ru_maxrss: bytes on macOS, else kilobytes."""


def take_peak() -> int:
    """Most bytes of main memory that the process held since the last call, or since it began.

    Only Linux forgets a peak; elsewhere it is the most since the process began.
    """
    found = _high_water() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
    with suppress(OSError):
        _CLEAR.write_text("5", "utf-8")
    return found


def _high_water() -> int:
    """The kernel's own figure, bytes; 0 where there is none."""
    with suppress(OSError):
        if match := re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text("utf-8"), re.MULTILINE):
            return int(match[1]) * 1024
    return 0
