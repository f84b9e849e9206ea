"""The pool's actors and the loop that feeds them, one key at a time.

An actor opens the worker class it is told to and keeps it open; told another, it changes over. A worker class whose
units take milliseconds may say `ahead = 2`: then a second key waits at the actor already. Nothing is remembered in
Ray: a key whose actor died goes to another, and an actor is given keys once it answers, on whatever node it came up.
All are asked anew in every stream: what a director that has just come up gives to an actor whose node is gone waits
until there is room for that actor elsewhere, which may be never.
A unit that takes far longer than its like is given to an idle actor as well; what comes first counts.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from adatsq_pipe.cluster.desk import Desk
from adatsq_pipe.cluster.errors import Stopped, WorkerLost
from adatsq_pipe.cluster.ledger import Ledger

LOST = (ActorDiedError, ActorUnavailableError)
PATIENCE = 600.0
"""Seconds without any actor that answers, after which the run gives up."""
SOON = 0.2
"""Seconds that a stream waits for the actors that were up, so that they share its keys from the first on."""
SLOW, SLOW_SECONDS = 4.0, 30.0
"""A unit is a straggler after so many times the median of its like, and not before so many seconds."""


class Host:
    """The actor: one process, one open worker."""

    def __init__(self) -> None:
        self._desk = Desk()

    def answer(self) -> None:
        """Nothing: that it returns says that the actor is up."""

    def do(self, worker: Callable[[Any], Any], context: Any, key: str) -> Any:
        self._desk.open(worker, context)
        return self._desk.do(key)


@dataclass(frozen=True)
class _Task:
    """A key at an actor since `start`."""

    host: Any
    key: str
    start: float


class Crew:
    """Handles of the actors and the feeding loop; can itself be sent to an actor."""

    def __init__(self, hosts: list[Any], retries: int) -> None:
        self.hosts, self.retries, self.stopping = hosts, retries, False
        self.grow: Callable[[], list[Any]] = _nobody
        """Actors that have become possible since it was last asked, when nodes have joined."""
        self._up: set[Any] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "grow": _nobody}

    @property
    def answering(self) -> int:
        return len(self._up)

    def stop(self) -> None:
        self.stopping = True

    def stream(self, worker: Callable[[Any], Any], context: Any, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """What the worker returns for each key, as it comes. Raises Stopped, UnitFailed, WorkerLost."""
        waiting = list(keys)
        if waiting:
            yield from _Feed(self, worker, context, waiting).results()
        if self.stopping:
            raise Stopped


def _nobody() -> list[Any]:
    return []


class _Feed:
    """One stream: which keys wait, which run where, which actors are free or still coming up."""

    def __init__(self, crew: Crew, worker: Callable[[Any], Any], context: Any, keys: list[str]) -> None:
        self.crew, self.worker, self.context = crew, worker, context
        self.ahead = int(getattr(worker, "ahead", 1))
        self.waiting, self.idle = deque(keys), deque[Any]()
        self.running: dict[Any, _Task] = {}
        self.coming: dict[Any, Any] = {}
        self.finished: set[str] = set()
        self.seconds: list[float] = []
        self.tried: dict[str, set[Any]] = {}
        self.ledger = Ledger(crew.retries)
        for host in crew.hosts:
            self._ask(host)
        self.answered = self.grown = time.monotonic()

    def _ask(self, host: Any) -> None:
        """The actor gets keys when it answers."""
        self.coming[host.answer.remote()] = host

    def _welcome(self) -> None:
        """Those who were up, if they still are."""
        known = [reference for reference, host in self.coming.items() if host in self.crew._up]
        ready, silent = ray.wait(known, num_returns=len(known), timeout=SOON) if known else ([], [])
        self.crew._up -= {self.coming[reference] for reference in silent}
        for reference in ready:
            self._arrived(reference)

    def results(self) -> Iterator[tuple[str, Any]]:
        self._welcome()
        while self.waiting or self.running:
            self._hand_out()
            if self.crew.stopping and not self.running:
                return
            ready, _ = ray.wait([*self.running, *self.coming], timeout=0.5)
            for reference in ready:
                if reference in self.coming:
                    self._arrived(reference)
                elif reference in self.running:
                    yield from self._landed(reference)
            self._look_around()
        self.ledger.settle()

    def _hand_out(self) -> None:
        while self.waiting and self.idle and not self.crew.stopping:
            key = self.waiting.popleft()
            busy, known = Counter(task.host for task in self.running.values()), self.tried.get(key, set())
            host = min(self.idle, key=lambda h: (h in known, busy[h]))
            self.idle.remove(host)
            self._give(host, key)

    def _give(self, host: Any, key: str) -> None:
        self.running[host.do.remote(self.worker, self.context, key)] = _Task(host, key, time.monotonic())

    def _arrived(self, reference: Any) -> None:
        host = self.coming.pop(reference)
        try:
            ray.get(reference)
        except LOST:
            self.crew._up.discard(host)
            time.sleep(0.2)
            self._ask(host)
            return
        self.crew._up.add(host)
        self.answered = time.monotonic()
        self.idle.extend([host] * self.ahead)

    def _landed(self, reference: Any) -> Iterator[tuple[str, Any]]:
        task = self.running.pop(reference)
        self.answered = time.monotonic()
        try:
            result = ray.get(reference)
        except LOST:
            self._lose(task.host)
            lost = WorkerLost(f"the process that worked on it died (out of memory?): unit {task.key!r}")
            self._failed(task, lost, str(lost))
        except RayTaskError as error:
            self.idle.append(task.host)
            self._failed(task, cause(error), str(error))
        else:
            self.idle.append(task.host)
            if task.key in self.finished:
                return
            self.finished.add(task.key)
            self.seconds.append(time.monotonic() - task.start)
            self.ledger.done()
            self._drop_copies(task.key)
            yield task.key, result

    def _lose(self, host: Any) -> None:
        """The actor is gone, with what else waited there; Ray brings it up again, here or elsewhere."""
        self.crew._up.discard(host)
        self.idle = deque(h for h in self.idle if h is not host)
        for reference in [r for r, task in self.running.items() if task.host is host]:
            behind = self.running.pop(reference)
            if behind.key not in self.finished:
                self.waiting.appendleft(behind.key)
        if host not in self.coming.values():
            self._ask(host)

    def _failed(self, task: _Task, error: BaseException, traceback: str) -> None:
        if task.key in self.finished or any(t.key == task.key for t in self.running.values()):
            return
        self.tried.setdefault(task.key, set()).add(task.host)
        if self.ledger.failed(task.key, error, traceback):
            self.waiting.appendleft(task.key)

    def _drop_copies(self, key: str) -> None:
        """A second try of a finished unit is ended with its process, which would be held up by it."""
        for task in [t for t in self.running.values() if t.key == key]:
            ray.kill(task.host, no_restart=False)
            self._lose(task.host)

    def _look_around(self) -> None:
        """New nodes, stragglers, and whether anybody is there at all."""
        now = time.monotonic()
        if now - self.grown > 5:
            self.grown = now
            for host in self.crew.grow():
                self.crew.hosts.append(host)
                self._ask(host)
        if not self.waiting and len(self.seconds) >= 3 and not self.crew.stopping:
            limit = max(SLOW_SECONDS, SLOW * statistics.median(self.seconds))
            for task in [t for t in self.running.values() if now - t.start > limit]:
                free = next((h for h in self.idle if all(t.host is not h for t in self.running.values())), None)
                if free is not None and sum(t.key == task.key for t in self.running.values()) == 1:
                    self.idle.remove(free)
                    self._give(free, task.key)
        if not self.running and now - self.answered > PATIENCE:
            raise WorkerLost(
                f"no worker has come up for {PATIENCE:.0f} s: the cluster has {_resources()}; lower "
                "cluster.cpus_per_worker or cluster.gpus_per_worker, or add nodes, and run again"
            )


def _resources() -> str:
    found = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}
    return ", ".join(f"{v:g} {k}" for k, v in sorted(found.items())) or "no CPU"


def cause(error: RayTaskError) -> BaseException:
    """The exception as the worker raised it, not wrapped."""
    return error.cause if isinstance(error.cause, BaseException) else error
