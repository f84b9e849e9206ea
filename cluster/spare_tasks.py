"""Spare tasks: those of a later stream, which actors begin that the current stream leaves idle."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, NamedTuple

import ray
from ray.exceptions import RayError

from adatsq_pipe.cluster.worker_slot import ContextT, ResultT, WorkerClass

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle


class SpareAttempt(NamedTuple):
    """A spare task of a worker class at an actor, which has no other."""

    actor: ActorHandle
    task: str
    worker_class: object


class SpareTasks(Generic[ContextT, ResultT]):
    """The tasks of one worker class that are on offer, and those that were begun, of this class or of an earlier one.

    The stream that they belong to claims what is in progress when it starts, so that no task runs twice. What fails
    here is not reported: that stream tries it again.
    """

    def __init__(self) -> None:
        self._worker_class: WorkerClass[ContextT, ResultT] | None = None
        self._context: ContextT | None = None
        self._waiting: deque[str] = deque()
        self.running: dict[ObjectRef, SpareAttempt] = {}

    def offer(self, worker_class: WorkerClass[ContextT, ResultT], context: ContextT, keys: Iterable[str]) -> None:
        """From now on these are the tasks that idle actors may begin, in place of those that were offered before."""
        begun = {attempt.task for attempt in self.running.values() if attempt.worker_class == worker_class}
        self._worker_class, self._context = worker_class, context
        self._waiting = deque(key for key in keys if key not in begun)

    def begin(self, idle: Iterable[ActorHandle], busy: Collection[ActorHandle]) -> deque[ActorHandle]:
        """Send a task to each of the idle actors that is not busy, as far as there are some; those that stay idle."""
        for actor in [actor for actor in dict.fromkeys(idle) if actor not in busy]:
            if self._waiting:
                task = self._waiting.popleft()
                reference = actor.run.remote(self._worker_class, self._context, task)
                self.running[reference] = SpareAttempt(actor, task, self._worker_class)
        taken = {attempt.actor for attempt in self.running.values()}
        return deque(actor for actor in idle if actor not in taken)

    def end(self, reference: ObjectRef) -> ActorHandle:
        """The actor of a task that is over."""
        with suppress(RayError):
            ray.get(reference)
        return self.running.pop(reference).actor

    def claim(self, worker_class: object, tasks: Collection[str]) -> dict[ObjectRef, SpareAttempt]:
        """Those of `tasks` that are in progress. They, and what waits of that class, are no longer spare."""
        if worker_class == self._worker_class:
            self._waiting.clear()
        mine = [
            (reference, attempt)
            for reference, attempt in self.running.items()
            if attempt.worker_class == worker_class and attempt.task in tasks
        ]
        for reference, _ in mine:
            del self.running[reference]
        return dict(mine)
