"""Copies of the tree, each with one fault at a time, and a process forked for the tests of each fault.

Most of a test's time is the import of torch and diffusers, so the tests run in forks of this process, which has
imported them. A fork imports this project's own modules from its copy.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Literal

import pytest

from tests.bench.mutants.check import ROOT
from tests.bench.mutants.fault import Fault

Verdict = Literal["caught", "survived", "broken"]
ROOMS = ("pipeline", "stages", "storage", "cluster")
OURS = ("adatsq_pipe", "tests")
PRELOADED = (
    "torch",
    "diffusers",
    "transformers",
    "diffusers.quantizers.auto",
    "zarr",
    "pyarrow.parquet",
    "scipy.ndimage",
    "skimage.metrics",
)
LIMIT = 900
"""Seconds after which tests that do not end count as failed."""
OPTIONS = (
    *("-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=line", "-m", "not run and not extended and not gpu"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
"""The forked process has loaded libraries before pytest can rewrite their asserts; that is no reason to fail."""
_FORKS = multiprocessing.get_context("fork")


@dataclass
class _Trial:
    copy: Path
    fault: Fault
    original: str
    process: ForkProcess
    end: float

    @property
    def log(self) -> Path:
        return self.copy / "tests.log"


class Copies:
    """As many copies of the tree as trials may run at a time; a context manager that removes them."""

    def __init__(self, jobs: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        self._free = [self._copy(self._folder / str(i)) for i in range(jobs)]
        for name in PRELOADED:
            import_module(name)
        import_module("torch").set_num_threads(1)

    def __enter__(self) -> Copies:
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _copy(self, to: Path) -> Path:
        for name in (*ROOMS, "tests"):
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "results", "pictures"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy2(ROOT / name, to / name)
        (to / "mirror/adatsq_pipe").mkdir(parents=True)
        for room in ROOMS:
            (to / "mirror/adatsq_pipe" / room).symlink_to(to / room, target_is_directory=True)
        return to

    def verdicts(self, faults: Sequence[Fault]) -> Iterator[tuple[Fault, Verdict, str]]:
        """(fault, verdict, the test that noticed) of each fault, as they are known."""
        waiting, running = list(reversed(faults)), list[_Trial]()
        while waiting or running:
            while waiting and self._free:
                running.append(self._start(self._free.pop(), waiting.pop()))
            wait([trial.process.sentinel for trial in running], timeout=1)
            for trial in list(running):
                late = time.monotonic() > trial.end
                if trial.process.is_alive() and not late:
                    continue
                if late:
                    trial.process.kill()
                trial.process.join()
                running.remove(trial)
                (trial.copy / trial.fault.file).write_text(trial.original)
                self._free.append(trial.copy)
                yield trial.fault, *_verdict(trial, late)

    def _start(self, copy: Path, fault: Fault) -> _Trial:
        path = copy / fault.file
        original = path.read_text()
        path.write_text(original.replace(fault.old, fault.new))
        process = _FORKS.Process(target=_test, args=(copy, fault.tests))
        process.start()
        return _Trial(copy=copy, fault=fault, original=original, process=process, end=time.monotonic() + LIMIT)


def _verdict(trial: _Trial, late: bool) -> tuple[Verdict, str]:
    lines = trial.log.read_text().splitlines()
    failed = [line.split()[1].rpartition("/")[2] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if late:
        return "caught", f"no end after {LIMIT} s"
    if trial.process.exitcode == pytest.ExitCode.OK:
        return "survived", ""
    if trial.process.exitcode == pytest.ExitCode.TESTS_FAILED:
        return "caught", (failed or [""])[0]
    return "broken", (lines or [""])[-1]


def _test(copy: Path, tests: Sequence[str]) -> None:
    """Be `pytest TESTS` in the copy; ends the process."""
    log = os.open(copy / "tests.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(log, number)
    os.chdir(copy)
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    sys.path[:] = [
        str(copy / "mirror"),
        str(copy),
        *(p for p in sys.path if p not in ("", str(ROOT)) and ".typing" not in p),
    ]
    code = pytest.main([*OPTIONS, "--rootdir", str(copy), *tests])
    sys.stdout.flush()
    os._exit(int(code))
