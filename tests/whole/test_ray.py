"""A whole tiny run on Ray, with two workers: the same bytes whatever is killed, and a stop on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.whole import harness

pytestmark = pytest.mark.run


def test_two_ray_workers_survive_kills_of_workers_and_driver_and_a_sigterm(
    undisturbed: Path, tiny_flux: Path, tmp_path: Path, started: list[harness.Started]
) -> None:
    run = tmp_path / "run"
    arguments = harness.tiny(run, tiny_flux, "--set", "cluster.workers=2", executor="ray")

    def start() -> harness.Started:
        started.append(harness.Started(*arguments))
        return started[-1]

    first = start()
    harness.wait_for(lambda: harness.count(run, "capture") >= 1, first)
    harness.ray_process(first, "ray::WorkerActor").kill()
    harness.wait_for(lambda: harness.count(run, "solve") >= 2, first)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()

    second = start()
    harness.wait_for(lambda: harness.count(run, "search") >= 1, second)
    harness.ray_process(second, "ray::WorkerActor").kill()
    os.kill(second.pid, signal.SIGTERM)
    stopped = second.wait()
    assert stopped.returncode == 75, stopped.stderr

    done = start().wait()
    assert done.returncode == 0, done.stderr
    harness.same(run, undisturbed)
