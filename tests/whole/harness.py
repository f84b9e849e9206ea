"""Running the command line in a process of its own, with a scripted kill where a test wants one.

Most of a tiny run is the import of torch and diffusers, so `run` forks from a process that has imported them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from adatsq_pipe.storage.fingerprint import file_digest, files_below
from tests.conftest import PATIENCE, TINY

ROOT = Path(__file__).parents[2]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.whole.preloaded"])


def command(*arguments: str, strike: str = "") -> list[str]:
    """The command line; with `strike` = "stage:n" it kills itself, kill -9, in the stage's n-th unit (from 0)."""
    return [sys.executable, "-m", *_start(strike), *arguments]


def _start(strike: str) -> list[str]:
    return ["tests.whole.struck", strike] if strike else ["adatsq_pipe.pipeline.cli"]


def run(
    *arguments: str, strike: str = "", start: Sequence[str] = (), site: Path | None = None, limit: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """What `command` does, to its end; in a fork that need not import anything.

    `start` is another module than the command line, with arguments of its own; `site` a folder of further packages.
    """
    module = [*(start or _start(strike)), *arguments]
    with tempfile.TemporaryDirectory() as said:
        out, err = Path(said) / "out", Path(said) / "err"
        process = _FORKS.Process(target=_be, args=(module, environment(), site, out, err))
        process.start()
        process.join(limit)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(module, limit, out.read_text(), err.read_text())
        return subprocess.CompletedProcess(module, process.exitcode, out.read_text(), err.read_text())


def _be(module: Sequence[str], environment: dict[str, str], site: Path | None, out: Path, err: Path) -> None:
    """Be `python -m MODULE ARGUMENTS`."""
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


def tiny(run_dir: Path, model: Path, *more: str, executor: str = "inline") -> list[str]:
    """Arguments of a tiny run."""
    return ["run", "--run-dir", str(run_dir), "--model", str(model), "--executor", executor, *TINY, *more]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative name."""
    return {str(path.relative_to(folder)): file_digest(path) for path in files_below(folder)}


def count(run_dir: Path, stage: str) -> int:
    """Markers of a stage."""
    return len(list(run_dir.glob(f"{stage}/*/markers/**/*.json")))


def last_line(text: str) -> str:
    lines: Sequence[str] = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""


def quality(run: Path) -> object:
    return json.loads((run / "report" / "summary.json").read_text())["quality"]


def same(run: Path, reference: Path) -> None:
    assert digests(run / "model") == digests(reference / "model")
    assert quality(run) == quality(reference)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], limit: float = PATIENCE) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def ray_process(driver: subprocess.Popen[str], title: str) -> psutil.Process:
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
