"""A test that starts the command line, Ray or another Python unmarked fails, and says which mark it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.run_guard import guard
from tests.whole import harness

UNMARKED = r"test_run_guard.py::test_\S+ starts .*: mark it with @pytest.mark.run"


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", "exit", "adatsq_pipe.pipeline.commands.cli"],
        ["sh", "-c", "exit", "/site/ray/core/src/ray/raylet/raylet"],
        [sys.executable, "-c", "raise SystemExit"],
    ],
)
def test_a_process_needs_the_mark(command: list[str]) -> None:
    with pytest.raises(pytest.fail.Exception, match=UNMARKED):
        subprocess.run(command)


def test_the_harness_needs_the_mark() -> None:
    with pytest.raises(pytest.fail.Exception, match=UNMARKED):
        harness.run("--help")


@pytest.mark.run
def test_what_has_the_mark_may_start_a_process() -> None:
    done = subprocess.run([sys.executable, "-c", "raise SystemExit(3)", "adatsq_pipe.pipeline.commands.cli"])
    assert done.returncode == 3


def test_other_processes_need_no_mark() -> None:
    assert guard.item is not None and guard.item.get_closest_marker("run") is None
    assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
