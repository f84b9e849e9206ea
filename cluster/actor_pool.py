"""The pool of worker actors, and the loop that dispatches tasks to them one at a time.

Ray holds no state of a run: when an actor dies, its task goes to another actor. An actor gets tasks once it has
answered a ping, on whatever node it has come up. Every stream pings all actors first: a task sent to an actor whose
node is gone would hang until Ray reschedules it.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from adatsq_pipe.cluster.errors import Stopped, WorkerLost
from adatsq_pipe.cluster.failure_tracker import FailureTracker
from adatsq_pipe.cluster.spare_tasks import SpareTasks
from adatsq_pipe.cluster.worker_slot import ContextT, ResultT, WorkerClass, WorkerSlot

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

ACTOR_LOST = (ActorDiedError, ActorUnavailableError)
NO_WORKER_TIMEOUT = 600.0
"""Seconds without any live actor before the run gives up."""
FIRST_PING_TIMEOUT = 0.2
"""Seconds that a stream waits for actors that were alive before, so that all of them share its first tasks."""
STRAGGLER_FACTOR, STRAGGLER_SECONDS = 4.0, 30.0
"""A task is a straggler after this many times the stream's median, and not before so many seconds."""
GROWTH_INTERVAL = 5.0
"""Seconds between two checks for nodes that have joined."""
REPING_PAUSE = 0.2
"""Seconds before an actor that died is pinged again."""


class WorkerActor:
    """The Ray actor: one process with one open worker."""

    def __init__(self) -> None:
        self._slot = WorkerSlot()

    def ping(self) -> None:
        """Return: that is the answer."""

    def run(self, worker_class: WorkerClass[ContextT, ResultT], context: ContextT, task: str) -> ResultT:
        return self._slot.run(worker_class, context, task)


class ActorPool:
    """The handles of the actors, and `stream`. It can be sent to another actor, which then dispatches to the same ones.

    `grow` returns new actors for the nodes that have joined since its last call; it is not sent along.
    """

    def __init__(
        self, actors: list[ActorHandle], retries: int, grow: Callable[[], list[ActorHandle]] | None = None
    ) -> None:
        self.actors, self.retries, self.grow = actors, retries, grow
        self.stopping = False
        self.live: set[ActorHandle] = set()
        """Actors that answered their last ping and have not died since."""
        self.spare: SpareTasks[Any, Any] = SpareTasks()
        """What actors do that a stream leaves idle; it is not sent along either."""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "grow": None, "spare": SpareTasks()}

    def stop(self) -> None:
        """Finish the tasks in progress; `stream` then raises Stopped."""
        self.stopping = True

    def stream(
        self, worker_class: WorkerClass[ContextT, ResultT], context: ContextT, keys: Iterable[str]
    ) -> Iterator[tuple[str, ResultT]]:
        """Yield (key, result) as tasks finish. Raises Stopped, TaskFailed, WorkerLost, and what is not retryable."""
        tasks = list(keys)
        if tasks:
            yield from _Dispatch(self, worker_class, context, tasks).results()
        if self.stopping:
            raise Stopped


@dataclass(frozen=True)
class _Attempt:
    """A task sent to an actor at `start` (of the monotonic clock)."""

    actor: ActorHandle
    task: str
    start: float


class _Dispatch(Generic[ContextT, ResultT]):
    """One stream: tasks that wait, attempts in progress, actors that are idle, and pings without an answer yet."""

    def __init__(
        self, pool: ActorPool, worker_class: WorkerClass[ContextT, ResultT], context: ContextT, tasks: list[str]
    ) -> None:
        self.pool, self.worker_class, self.context = pool, worker_class, context
        self.queue_depth = int(getattr(worker_class, "queue_depth", 1))
        self.spare, claimed, now = pool.spare, pool.spare.claim(worker_class, tasks), time.monotonic()
        self.running = {reference: _Attempt(actor, task, now) for reference, (actor, task, _) in claimed.items()}
        begun = {attempt.task for attempt in self.running.values()}
        self.waiting = deque(task for task in tasks if task not in begun)
        self.idle: deque[ActorHandle] = deque()
        """An actor stands here once for each further task it can take."""
        self.pings: dict[ObjectRef, ActorHandle] = {}
        self.finished: set[str] = set()
        self.durations: list[float] = []
        self.failed_on: dict[str, set[ActorHandle]] = {}
        self.failures = FailureTracker(pool.retries)
        busy = {attempt.actor for attempt in (*claimed.values(), *self.spare.running.values())}
        for actor in [actor for actor in pool.actors if actor not in busy]:
            self._ping(actor)
        self.last_answer = self.last_growth = time.monotonic()

    def results(self) -> Iterator[tuple[str, ResultT]]:
        self._await_live_actors()
        while self.waiting or self.running or (self.pool.stopping and self.spare.running):
            self._send_waiting_tasks()
            if not self.waiting and not self.pool.stopping:
                self.idle = self.spare.begin(self.idle, {attempt.actor for attempt in self.running.values()})
            if self.pool.stopping and not self.running and not self.spare.running:
                return
            ready, _ = ray.wait([*self.running, *self.pings, *self.spare.running], timeout=0.5)
            for reference in ready:
                if reference in self.spare.running:
                    self.last_answer = time.monotonic()
                    self._ping(self.spare.end(reference))
                elif reference in self.pings:
                    self._receive_ping(reference)
                elif reference in self.running:
                    yield from self._receive_result(reference)
            self._add_new_actors()
            self._repeat_stragglers()
            self._check_for_workers()
        self.failures.raise_failures()

    def _ping(self, actor: ActorHandle) -> None:
        self.pings[actor.ping.remote()] = actor

    def _await_live_actors(self) -> None:
        """Wait a moment for the actors that were alive before; those that do not answer count as not alive."""
        pings = [reference for reference, actor in self.pings.items() if actor in self.pool.live]
        ready, silent = ray.wait(pings, num_returns=len(pings), timeout=FIRST_PING_TIMEOUT) if pings else ([], [])
        self.pool.live -= {self.pings[reference] for reference in silent}
        for reference in ready:
            self._receive_ping(reference)

    def _receive_ping(self, reference: ObjectRef) -> None:
        actor = self.pings.pop(reference)
        try:
            ray.get(reference)
        except ACTOR_LOST:
            self.pool.live.discard(actor)
            time.sleep(REPING_PAUSE)
            self._ping(actor)
            return
        self.pool.live.add(actor)
        self.last_answer = time.monotonic()
        self.idle.extend([actor] * self.queue_depth)

    def _send_waiting_tasks(self) -> None:
        """Prefer actors on which the task has not failed yet, and of those the least busy."""
        while self.waiting and self.idle and not self.pool.stopping:
            task = self.waiting.popleft()
            load, failed_on = Counter(attempt.actor for attempt in self.running.values()), self.failed_on.get(task, ())
            actor = min(self.idle, key=lambda idle: (idle in failed_on, load[idle]))
            self._send(actor, task)

    def _send(self, actor: ActorHandle, task: str) -> None:
        self.idle.remove(actor)
        reference = actor.run.remote(self.worker_class, self.context, task)
        self.running[reference] = _Attempt(actor, task, time.monotonic())

    def _receive_result(self, reference: ObjectRef) -> Iterator[tuple[str, ResultT]]:
        attempt = self.running.pop(reference)
        self.last_answer = time.monotonic()
        try:
            result = ray.get(reference)
        except ACTOR_LOST:
            self._lose(attempt.actor)
            lost = WorkerLost(f"the worker process died while it ran unit {attempt.task!r} (out of memory?)")
            self._fail(attempt, lost, str(lost))
        except RayTaskError as error:
            self.idle.append(attempt.actor)
            self._fail(attempt, original_error(error), str(error))
        else:
            self.idle.append(attempt.actor)
            if attempt.task in self.finished:
                return
            self.finished.add(attempt.task)
            self.durations.append(time.monotonic() - attempt.start)
            self.failures.succeeded()
            self._end_copies(attempt.task)
            yield attempt.task, result

    def _fail(self, attempt: _Attempt, error: BaseException, traceback: str) -> None:
        """Let the task wait again if it may be retried. A failure does not count while a copy is running."""
        if attempt.task in self.finished or any(other.task == attempt.task for other in self.running.values()):
            return
        self.failed_on.setdefault(attempt.task, set()).add(attempt.actor)
        if self.failures.failed(attempt.task, error, traceback):
            self.waiting.appendleft(attempt.task)

    def _lose(self, actor: ActorHandle) -> None:
        """The actor died. Its other tasks wait again, and it is pinged until Ray has restarted it."""
        self.pool.live.discard(actor)
        self.idle = deque(idle for idle in self.idle if idle is not actor)
        for reference in [r for r, attempt in self.running.items() if attempt.actor is actor]:
            attempt = self.running.pop(reference)
            if attempt.task not in self.finished:
                self.waiting.appendleft(attempt.task)
        if actor not in self.pings.values():
            self._ping(actor)

    def _end_copies(self, task: str) -> None:
        """Kill the actors that still run a finished task: a hung one would never be free again."""
        for attempt in [attempt for attempt in self.running.values() if attempt.task == task]:
            ray.kill(attempt.actor, no_restart=False)
            self._lose(attempt.actor)

    def _add_new_actors(self) -> None:
        if self.pool.grow is None or time.monotonic() - self.last_growth <= GROWTH_INTERVAL:
            return
        self.last_growth = time.monotonic()
        for actor in self.pool.grow():
            self.pool.actors.append(actor)
            self._ping(actor)

    def _repeat_stragglers(self) -> None:
        """Send a copy of a task that takes far longer than the others to an idle actor; the first result counts."""
        if self.waiting or self.pool.stopping or len(self.durations) < 3:
            return
        limit = max(STRAGGLER_SECONDS, STRAGGLER_FACTOR * statistics.median(self.durations))
        for attempt in list(self.running.values()):
            copies = sum(other.task == attempt.task for other in self.running.values())
            busy = {running.actor for running in self.running.values()}
            free = next((actor for actor in self.idle if actor not in busy), None)
            if time.monotonic() - attempt.start > limit and copies == 1 and free is not None:
                self._send(free, attempt.task)

    def _check_for_workers(self) -> None:
        if not self.running and not self.spare.running and time.monotonic() - self.last_answer > NO_WORKER_TIMEOUT:
            raise WorkerLost(
                f"no worker has come up for {NO_WORKER_TIMEOUT:.0f} s: the cluster has {_cluster_size()}; lower "
                "cluster.cpus_per_worker or cluster.gpus_per_worker, or add nodes, and run again"
            )


def _cluster_size() -> str:
    sizes = {name: amount for name, amount in ray.cluster_resources().items() if name in ("CPU", "GPU")}
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(sizes.items())) or "no CPU"


def original_error(error: RayTaskError) -> BaseException:
    """The exception that the worker raised, without Ray's wrapper."""
    return error.cause if isinstance(error.cause, BaseException) else error
