"""Running the command line in a process of its own, with a scripted kill where a test wants one.

Most of a tiny run is the import of torch and diffusers, so `run` forks from a process that has imported them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from adatsq_pipe.storage.fingerprint import file_digest, list_files
from tests.conftest import PATIENCE, TINY
from tests.support.run_guard import guard

ROOT = Path(__file__).parents[2]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.whole.preloaded"])


def _start(strike: str) -> list[str]:
    """The command line; with `strike` = "stage:n" it kills itself, kill -9, in the stage's n-th unit (from 0)."""
    return ["tests.whole.struck", strike] if strike else ["adatsq_pipe.pipeline.commands.cli"]


class Started:
    """A command line under way, forked, in a process group of its own; what it says is in files."""

    def __init__(self, *arguments: str, strike: str = "", start: Sequence[str] = (), site: Path | None = None) -> None:
        guard.require("the command line")
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder)
        self._out, self._err = (Path(folder) / name for name in ("out", "err"))
        self.module = [*(start or _start(strike)), *arguments]
        self._process = _FORKS.Process(target=_be, args=(self.module, environment(), site, self._out, self._err))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As subprocess has it; None while it runs."""
        return self._process.exitcode

    def said(self) -> tuple[str, str]:
        """What it printed so far, and its errors."""
        out, err = (path.read_text() if path.exists() else "" for path in (self._out, self._err))
        return out, err

    def kill(self) -> None:
        """It and all that it started and that stayed in its group."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.join()

    def wait(self, limit: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        self._process.join(limit)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.module, limit, *self.said())
        return subprocess.CompletedProcess(self.module, self.returncode, *self.said())


def run(
    *arguments: str, strike: str = "", start: Sequence[str] = (), site: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A command line to its end; in a fork that need not import anything.

    `start` is another module than the command line, with arguments of its own; `site` a folder of further packages.
    """
    return Started(*arguments, strike=strike, start=start, site=site).wait()


def _be(module: Sequence[str], environment: dict[str, str], site: Path | None, out: Path, err: Path) -> None:
    """Be `python -m MODULE ARGUMENTS`."""
    os.setsid()
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(module)
    if site is not None:
        sys.path.insert(0, str(site))
    runpy.run_module(module[0], run_name="__main__", alter_sys=True)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def tiny(run_dir: Path, model: Path, *more: str, executor: str = "inline", method: str = "adatsq") -> list[str]:
    """Arguments of a tiny run; by AdaTSQ, unless another `method` is named, because its search has the most units."""
    recipe = ("--set", f"recipe.method={method}")
    return ["run", "--run-dir", str(run_dir), "--model", str(model), "--executor", executor, *TINY, *recipe, *more]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative name."""
    return {str(path.relative_to(folder)): file_digest(path) for path in list_files(folder)}


def count(run_dir: Path, stage: str) -> int:
    """Markers of a stage."""
    return len(list(run_dir.glob(f"{stage}/*/markers/**/*.json")))


def last_line(text: str) -> str:
    lines: Sequence[str] = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""


def quality(run: Path) -> object:
    return json.loads((run / "report" / "summary.json").read_text())["quality"]


def same(run: Path, reference: Path) -> None:
    here, there = digests(run / "model"), digests(reference / "model")
    assert [name for name in {*here, *there} if here.get(name) != there.get(name)] == []
    assert quality(run) == quality(reference)


def wait_for(condition: Callable[[], bool], process: Started | None = None) -> None:
    """Until it is so. Raises AssertionError if the process, if one is given, ends before, or nothing happens."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, ("nothing happened in time", process and process.said())
        assert process is None or process.returncode is None, process and process.said()
        time.sleep(0.02)


def ray_process(driver: Started, title: str) -> psutil.Process:
    """A process of the driver's own Ray: raylet's children carry the actor's name as title."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for child in psutil.Process(driver.pid).children(recursive=True):
            try:
                if title in " ".join(child.cmdline()):
                    return child
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise AssertionError(f"no process {title}")
