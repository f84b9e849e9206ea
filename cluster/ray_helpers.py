"""Processes that a local Ray starts and a run does not use: the autoscaler's monitor and the log monitor.

One adds machines to a cluster; the other passes on what workers print, which a run does not show. Both take CPU time as
long as Ray lives. When Ray ends, the monitor tries to report that to a server that has ended before it, and Ray waits a
second for it. Ray has no setting that leaves them out.
"""

from __future__ import annotations

import os
from contextlib import suppress

import psutil

SCRIPTS = (os.path.join("autoscaler", "_private", "monitor.py"), os.path.join("_private", "log_monitor.py"))
"""How the paths of their programs end, below Ray's package."""
PATIENCE = 5.0
"""Seconds until a killed process is left to Ray."""


def end_helpers() -> None:
    """Kill both, if this process has started them. Ray takes it that they have ended when it ends itself."""
    killed = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if any(word.endswith(SCRIPTS) for word in process.cmdline()):
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=PATIENCE)
