"""Workers and searches that a Ray process can import: they record every call on disk and fail as scripted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Script:
    """Where calls are recorded, and which tasks misbehave how often."""

    folder: str
    kill: tuple[str, ...] = ()
    kills: int = 1
    fail: tuple[str, ...] = ()
    fails: int = 99
    permanent: tuple[str, ...] = ()
    fatal: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    unopenable: bool = False
    pause: float = 0.0
    """Seconds that a task takes which does not misbehave."""

    def record(self, name: str) -> int:
        """Add a line, the process id, to a file. Returns its lines."""
        path = Path(self.folder) / name
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return len(path.read_text().splitlines())

    def calls(self, task: str) -> int:
        """How often the task was begun."""
        path = Path(self.folder) / f"call-{task}"
        return len(path.read_text().splitlines()) if path.exists() else 0


class NotRetryable(RuntimeError):
    retryable = False


class Fatal(RuntimeError):
    fatal = True


class Recorder:
    """Returns the task in capitals."""

    def __init__(self, script: Script) -> None:
        self.script = script
        script.record("opened")
        if script.unopenable:
            raise ValueError("cannot be opened")

    def __call__(self, key: str) -> str:
        script, tries = self.script, self.script.record(f"call-{key}")
        if key in script.fail and tries <= script.fails:
            raise ValueError(f"no good: {key}")
        if key in script.permanent:
            raise NotRetryable(f"never: {key}")
        if key in script.fatal:
            raise Fatal(f"all is lost: {key}")
        if key in script.slow and tries == 1:
            time.sleep(3600)
        if key in script.kill and tries <= script.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(script.pause)
        return key.upper()


@dataclass(frozen=True)
class Memory:
    """Where calls are recorded, how many rows a task takes at first, and how many fit."""

    folder: str
    rows: int
    fit: int


class NoMemory(RuntimeError):
    """Raised by a worker, and not final."""


class Shrinking:
    """Takes half as many rows after every failure for want of memory, and returns how many it took."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.rows = memory, memory.rows

    def __call__(self, key: str) -> int:
        with (Path(self.memory.folder) / "rows").open("a") as file:
            file.write(f"{self.rows}\n")
        if self.rows > self.memory.fit:
            raise NoMemory(f"{self.rows} rows do not fit")
        return self.rows

    def recover(self, key: str, error: BaseException) -> bool:
        if not isinstance(error, NoMemory):
            return False
        if self.rows == 1:
            raise NotRetryable(f"{key}: one row does not fit") from error
        self.rows //= 2
        return True


class TaskStream(Protocol):
    """What a search is called with: an executor, or the pool of its actors."""

    def stream(self, worker_class: type[Recorder], context: Script, keys: list[str]) -> Iterator[tuple[str, str]]: ...


Report = Callable[[int, int], None]


def search(executor: TaskStream, script: Script, report: Report) -> None:
    """Two rounds of tasks, the second made from the first's results."""
    first = dict(executor.stream(Recorder, script, ["a", "b"]))
    second = dict(executor.stream(Recorder, script, sorted(value + "x" for value in first.values())))
    report(len(first) + len(second), 4)
    (Path(script.folder) / "result").write_text(",".join(sorted(second.values())))


def dying_search(executor: TaskStream, script: Script, report: Report) -> None:
    """`search`, whose process dies in it `script.kills` times."""
    if script.record("searches") <= script.kills:
        os.kill(os.getpid(), signal.SIGKILL)
    search(executor, script, report)


def failing_search(executor: TaskStream, script: Script, report: Report) -> None:
    raise ValueError("no good: the search")
