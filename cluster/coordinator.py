"""The named actor that runs a search: work that decides as it goes which tasks come next, beside the workers."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import ray
from ray.exceptions import RayTaskError

from adatsq_pipe.cluster.actor_pool import ACTOR_LOST, NO_WORKER_TIMEOUT, ActorPool, original_error
from adatsq_pipe.cluster.errors import Stopped, WorkerLost
from adatsq_pipe.cluster.worker_slot import ContextT

if TYPE_CHECKING:
    from ray import ObjectRef

Report = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""
Search = Callable[[ActorPool, ContextT, Report], None]
"""A function at the top level of a module. It resumes from what is on disk, so it can be run again at any time."""

MAX_DEATHS = 10
"""The run gives up when the coordinator has died this often during its search."""
PING_INTERVAL = 0.5
"""Seconds between two pings of a coordinator that does not answer."""
PROGRESS_INTERVAL = 0.3
"""Seconds between two looks at the search's progress."""


class Progress(NamedTuple):
    done: int
    total: int


class CoordinatorActor:
    """The Ray actor. Calls run in threads, so `progress` and `stop` are answered during `run`."""

    def __init__(self, modules: Sequence[str]) -> None:
        for module in modules:
            importlib.import_module(module)
        self._pool: ActorPool | None = None
        self._progress = Progress(0, 0)

    def run(self, search: Search[ContextT], pool: ActorPool, context: ContextT) -> None:
        self._pool = pool
        search(pool, context, self._report)

    def _report(self, done: int, total: int) -> None:
        self._progress = Progress(done, total)

    def progress(self) -> Progress:
        return self._progress

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.stop()


class Coordinator:
    """Starts the actor of a run and runs one search in it. The actor imports `modules` while it waits."""

    def __init__(self, run: str, modules: Sequence[str] = ()) -> None:
        self._actor = (
            ray.remote(CoordinatorActor)
            .options(num_cpus=0, max_concurrency=3, max_restarts=-1, name=f"adatsq-coordinator-{run}")
            .remote(tuple(modules))
        )

    def run(
        self,
        search: Search[ContextT],
        pool: ActorPool,
        context: ContextT,
        report: Report,
        stopping: Callable[[], bool],
    ) -> None:
        """Run `search(pool, context, report)` in the actor, which ends with it.

        If the actor dies, Ray restarts it, and the search is run there again. `stopping` says whether a stop was
        requested. Raises Stopped, WorkerLost, and what the search raises.
        """
        try:
            for _ in range(MAX_DEATHS):
                self._wait_until_up(stopping)
                try:
                    self._run_once(self._actor.run.remote(search, pool, context), report, stopping)
                    return
                except RayTaskError as error:
                    raise original_error(error) from None
                except ACTOR_LOST:
                    time.sleep(PING_INTERVAL)
        finally:
            ray.kill(self._actor)
        raise WorkerLost(f"the search's coordinator died {MAX_DEATHS} times; finished levels are kept")

    def _wait_until_up(self, stopping: Callable[[], bool]) -> None:
        """Calls to an actor that Ray is restarting fail at once, so ping it. Raises Stopped, WorkerLost."""
        end, ping = time.monotonic() + NO_WORKER_TIMEOUT, self._actor.progress.remote()
        while not stopping():
            if time.monotonic() > end:
                raise WorkerLost(
                    f"the search's coordinator did not come up within {NO_WORKER_TIMEOUT:.0f} s; run again to resume"
                )
            if not ray.wait([ping], timeout=PING_INTERVAL)[0]:
                continue
            try:
                ray.get(ping)
                return
            except ACTOR_LOST as error:
                if error.actor_init_failed:
                    raise WorkerLost(f"the search's coordinator cannot start: {error}") from None
                time.sleep(PING_INTERVAL)
                ping = self._actor.progress.remote()
        raise Stopped

    def _run_once(self, result: ObjectRef, report: Report, stopping: Callable[[], bool]) -> None:
        """Wait for the search's end; meanwhile pass on its progress, and a requested stop."""
        stop_sent = False
        while not ray.wait([result], timeout=PROGRESS_INTERVAL)[0]:
            report(*ray.get(self._actor.progress.remote()))
            if stopping() and not stop_sent:
                ray.get(self._actor.stop.remote())
                stop_sent = True
        ray.get(result)
        report(*ray.get(self._actor.progress.remote()))
