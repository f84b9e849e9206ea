"""The named actor in which a stage that decides as it goes (the search) lives, beside the workers it dispatches to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from adatsq_pipe.cluster.inline import Stopped
from adatsq_pipe.cluster.pool import Crew, WorkerLost, _cause

ATTEMPTS = 10


class _Director:
    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._progress = (0, 0)

    def conduct(self, drive: Callable[..., None], context: Any) -> None:
        drive(self._crew, context, self._report)

    def _report(self, done: int, total: int) -> None:
        self._progress = (done, total)

    def progress(self) -> tuple[int, int]:
        return self._progress

    def stop(self) -> None:
        self._crew.stop()


def conduct(
    crew: Crew,
    run: str,
    drive: Callable[..., None],
    context: Any,
    report: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> None:
    """Run `drive(crew, context, report)` in an actor named after the run. A dead actor is replaced: `drive` resumes."""
    actor_class = ray.remote(_Director)
    for _ in range(ATTEMPTS):
        actor = actor_class.options(num_cpus=0, max_concurrency=3, name=f"adatsq-director-{run}").remote(crew)
        finished, told = actor.conduct.remote(drive, context), False
        try:
            while not ray.wait([finished], timeout=0.3)[0]:
                report(*ray.get(actor.progress.remote()))
                if stopping() and not told:
                    ray.get(actor.stop.remote())
                    told = True
            ray.get(finished)
            report(*ray.get(actor.progress.remote()))
            ray.kill(actor)
            return
        except RayTaskError as error:
            ray.kill(actor)
            raise _cause(error) from None
        except (ActorDiedError, ActorUnavailableError):
            if stopping():
                raise Stopped from None
            time.sleep(0.5)
    raise WorkerLost(f"the director of the search died {ATTEMPTS} times; every finished level is kept")
