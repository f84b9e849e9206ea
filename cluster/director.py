"""The named actor in which a stage that decides as it goes (the search) lives, beside the workers it dispatches to."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from adatsq_pipe.cluster.crew import LOST, PATIENCE, Crew, cause
from adatsq_pipe.cluster.errors import Stopped, WorkerLost

ATTEMPTS = 10
"""So many deaths at work and the run gives up."""
PAUSE = 0.5
"""Seconds between two questions to a director that does not answer."""


class _Director:
    def __init__(self, modules: Sequence[str]) -> None:
        for module in modules:
            importlib.import_module(module)
        self._crew: Crew | None = None
        self._progress = (0, 0)

    def conduct(self, crew: Crew, drive: Callable[..., None], context: Any) -> None:
        self._crew = crew
        drive(crew, context, self._report)

    def _report(self, done: int, total: int) -> None:
        self._progress = (done, total)

    def progress(self) -> tuple[int, int]:
        return self._progress

    def stop(self) -> None:
        if self._crew is not None:
            self._crew.stop()


def start(run: str, modules: Sequence[str] = ()) -> Any:
    """The actor named after the run, its process on the way up and importing `modules`; Ray restarts a dead one."""
    named = ray.remote(_Director).options(num_cpus=0, max_concurrency=3, max_restarts=-1, name=f"adatsq-director-{run}")
    return named.remote(tuple(modules))


def conduct(
    actor: Any,
    crew: Crew,
    drive: Callable[..., None],
    context: Any,
    report: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> None:
    """Run `drive(crew, context, report)` in `actor`, which ends with it; in its successor `drive` resumes."""
    try:
        for _ in range(ATTEMPTS):
            _until_up(actor, stopping)
            try:
                _attend(actor, crew, drive, context, report, stopping)
                return
            except RayTaskError as error:
                raise cause(error) from None
            except LOST:
                time.sleep(PAUSE)
    finally:
        ray.kill(actor)
    raise WorkerLost(f"the director of the search died {ATTEMPTS} times; every finished level is kept")


def _until_up(actor: Any, stopping: Callable[[], bool]) -> None:
    """Wait for the actor: while Ray brings it up again, calls fail at once. Raises Stopped, WorkerLost."""
    end, asked = time.monotonic() + PATIENCE, actor.progress.remote()
    while not stopping():
        if time.monotonic() > end:
            raise WorkerLost(f"the director of the search did not come up for {PATIENCE:.0f} s; run again to go on")
        if not ray.wait([asked], timeout=PAUSE)[0]:
            continue
        try:
            ray.get(asked)
            return
        except LOST as error:
            if error.actor_init_failed:
                raise WorkerLost(f"the director of the search cannot start: {error}") from None
            time.sleep(PAUSE)
            asked = actor.progress.remote()
    raise Stopped


def _attend(
    actor: Any,
    crew: Crew,
    drive: Callable[..., None],
    context: Any,
    report: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> None:
    """Have the director drive, and pass on its progress and a wish to stop."""
    finished, told = actor.conduct.remote(crew, drive, context), False
    while not ray.wait([finished], timeout=0.3)[0]:
        report(*ray.get(actor.progress.remote()))
        if stopping() and not told:
            ray.get(actor.stop.remote())
            told = True
    ray.get(finished)
    report(*ray.get(actor.progress.remote()))
