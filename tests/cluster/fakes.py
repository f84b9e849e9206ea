"""Workers that a Ray process can import: they record every call on disk and fail as scripted."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adatsq_pipe.stages.base.micro_batch import Halving, cut, joined


@dataclass(frozen=True)
class Script:
    """Where calls are recorded, and which keys misbehave how often."""

    folder: str
    kill: tuple[str, ...] = ()
    fail: tuple[str, ...] = ()
    kills: int = 1
    fails: int = 99
    permanent: tuple[str, ...] = ()
    fatal: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()


class NotRetryable(RuntimeError):
    retryable = False


class Fatal(RuntimeError):
    fatal = True


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
        if key in self.script.permanent:
            raise NotRetryable(f"never: {key}")
        if key in self.script.fatal:
            raise Fatal(f"all is lost: {key}")
        if key in self.script.slow and tries == 1:
            time.sleep(3600)
        if key in self.script.kill and tries <= self.script.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        return key.upper()


@dataclass(frozen=True)
class Memory:
    """Where calls are recorded, how many rows a unit has, and how many fit at a time."""

    folder: str
    rows: int
    fit: int


class Summer(Halving):
    """Sums rows through a "denoiser" that runs out of memory above `fit` of them, as a GPU does."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def __call__(self, key: str) -> tuple[list[float], dict[str, int] | None]:
        import torch

        def forward(rows: torch.Tensor) -> torch.Tensor:
            with (Path(self.memory.folder) / "forwards").open("a") as file:
                file.write(f"{len(rows)}\n")
            if len(rows) > self.memory.fit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. If reserved but u")
            return rows.sum(1)

        self.micro.begin()
        batch = torch.arange(2.0 * self.memory.rows).reshape(-1, 2) * len(key)
        ranges = self.micro.ranges(len(batch))
        parts = [forward(cut(batch, len(batch), *part)) for part in ranges]
        return joined(parts, [stop - start for start, stop in ranges]).tolist(), self.micro.narrowed()


def drive(executor: Any, script: Script, report: Any) -> None:
    """Two rounds, the second made from the first's results."""
    first = dict(executor.stream(Recorder, script, ["a", "b"]))
    second = dict(executor.stream(Recorder, script, sorted(v + "x" for v in first.values())))
    report(len(first) + len(second), 4)
    (Path(script.folder) / "result").write_text(",".join(sorted(second.values())))


def dying_drive(executor: Any, script: Script, report: Any) -> None:
    """`drive`, whose process dies in it `script.kills` times."""
    began = Path(script.folder) / "began"
    with began.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if len(began.read_text().splitlines()) <= script.kills:
        os.kill(os.getpid(), signal.SIGKILL)
    drive(executor, script, report)


def failing_drive(executor: Any, script: Script, report: Any) -> None:
    raise ValueError("no good: the drive")
