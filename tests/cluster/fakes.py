"""Workers that a Ray process can import: they record every call on disk and fail as scripted."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Script:
    """Where calls are recorded, and which keys misbehave how often."""

    folder: str
    kill: tuple[str, ...] = ()
    fail: tuple[str, ...] = ()
    kills: int = 1
    fails: int = 99
    certain: tuple[str, ...] = ()
    hopeless: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()


class Certain(RuntimeError):
    certain = True


class Hopeless(RuntimeError):
    hopeless = True


class Recorder:
    def __init__(self, script: Script) -> None:
        self.script = script
        self._note("opened")

    def _note(self, name: str) -> int:
        path = Path(self.script.folder) / name
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return len(path.read_text().splitlines())

    def __call__(self, key: str) -> str:
        tries = self._note(f"call-{key}")
        if key in self.script.fail and tries <= self.script.fails:
            raise ValueError(f"no good: {key}")
        if key in self.script.certain:
            raise Certain(f"never: {key}")
        if key in self.script.hopeless:
            raise Hopeless(f"all is lost: {key}")
        if key in self.script.slow and tries == 1:
            time.sleep(120)
        if key in self.script.kill and tries <= self.script.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        return key.upper()


def drive(executor: Any, script: Script, report: Any) -> None:
    """Two rounds, the second made from the first's results."""
    first = dict(executor.stream(Recorder, script, ["a", "b"]))
    second = dict(executor.stream(Recorder, script, sorted(v + "x" for v in first.values())))
    report(len(first) + len(second), 4)
    (Path(script.folder) / "result").write_text(",".join(sorted(second.values())))


def failing_drive(executor: Any, script: Script, report: Any) -> None:
    raise ValueError("no good: the drive")
