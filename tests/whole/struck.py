"""The command line with a kill -9 built in: `python -m tests.whole.struck stage:n ...` dies in that unit."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.storage.manifest import Manifest

stage, _, place = sys.argv.pop(1).partition(":")
commit, left = Manifest.commit, int(place)


def struck(self: Manifest, unit: str, **details: Any) -> Any:
    global left
    if self.stage == stage:
        if left == 0:
            (self.attempt_folder(unit) / "half-written").write_bytes(b"torn")
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    return commit(self, unit, **details)


Manifest.commit = struck  # type: ignore[method-assign]
main()
