"""Which of this process's children are ended: the two that a run does not use, and no others."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from adatsq_pipe.cluster.ray_executor import RayExecutor
from adatsq_pipe.cluster.ray_helpers import end_helpers
from adatsq_pipe.cluster.resources import Resources

HELPERS = ("autoscaler/_private/monitor.py", "_private/log_monitor.py")


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _start(file: Path, opened: ExitStack) -> subprocess.Popen[bytes]:
    """A process whose command line ends with the path of a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    process = opened.enter_context(subprocess.Popen(["tail", "-f", str(file)]))
    opened.callback(process.kill)
    return process


def test_the_monitors_end_and_everything_else_lives(tmp_path: Path, opened: ExitStack) -> None:
    monitors = [_start(tmp_path / "ray" / name, opened) for name in HELPERS]
    others = [_start(tmp_path / name, opened) for name in ("ray/dashboard/dashboard.py", "mine/monitor.py")]
    end_helpers()
    assert all(not psutil.pid_exists(monitor.pid) for monitor in monitors)
    assert [other.poll() for other in others] == [None, None]
    end_helpers()
    assert [other.poll() for other in others] == [None, None]


@pytest.mark.run
def test_a_local_ray_runs_and_ends_without_them() -> None:
    before = psutil.Process().children()
    executor = RayExecutor(Resources(workers=1), "helpers")
    started = [child for child in psutil.Process().children() if child not in before]
    running = [" ".join(child.cmdline()) for child in started]
    assert any("gcs_server" in line for line in running) and any("raylet" in line for line in running)
    assert not any(name in line for line in running for name in HELPERS)
    executor.close()
    assert not psutil.wait_procs(started, timeout=30)[1]
