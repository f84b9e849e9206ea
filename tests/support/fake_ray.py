"""A stand-in for Ray in this process: actors with scripted deaths, hangs and silences, and a clock without waiting."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

END = 100_000.0
"""Seconds of the fake clock after which a loop counts as endless."""


class Endless(AssertionError):
    """The code under test would have waited for ever."""


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > END:
            raise Endless


class Reference:
    """A call of an actor's method: runs when `wait` returns it, or when it is read without a wait."""

    def __init__(self, actor: FakeActor, method: str, arguments: tuple[Any, ...]) -> None:
        self.actor, self.method, self.arguments = actor, method, arguments
        self.number = next(actor.fake.numbers)
        self.performed = self.taken = False
        self.result: Any = None
        self.error: Exception | None = None

    def perform(self) -> None:
        if not self.performed:
            self.performed = True
            try:
                self.result = self.actor.perform(self)
            except Exception as error:
                self.error = error

    @property
    def task(self) -> str:
        return self.arguments[-1] if self.method == "run" and isinstance(self.arguments[-1], str) else ""


class _Method:
    def __init__(self, actor: FakeActor, name: str) -> None:
        self.actor, self.name = actor, name

    def remote(self, *arguments: Any) -> Reference:
        reference = Reference(self.actor, self.name, arguments)
        if reference.task:
            self.actor.fake.sent.append((self.actor, reference.task))
            self.actor.queue.append(reference)
            self.actor.deepest = max(self.actor.deepest, len(self.actor.queue))
        return reference


class FakeActor:
    """An actor of one call at a time. Attributes script its faults; `run`, `ping` ... are the instance's methods."""

    def __init__(self, fake: FakeRay, make: Callable[[], Any], options: dict[str, Any]) -> None:
        self.fake, self.make, self.options = fake, make, options
        self.instance: Any = None
        self.silent = False
        """Answers nothing, as if its node were gone."""
        self.dead_pings = 0
        """So many next pings fail because it is dead."""
        self.hangs: set[str] = set()
        """Tasks that do not end until the actor is killed."""
        self.deaths: Counter[str] = Counter()
        """How often a task, or "" a search, kills the actor."""
        self.busy_waits = 0
        """So many looks at a running search find it running."""
        self.queue: list[Reference] = []
        self.deepest = 0

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Method(self, name)

    def ready(self, reference: Reference) -> bool:
        if self.silent:
            return False
        if reference.method == "run" and not reference.task and self.busy_waits:
            self.busy_waits -= 1
            return False
        if reference.task:
            return reference in self.queue and self.queue[0] is reference and reference.task not in self.hangs
        return True

    def perform(self, reference: Reference) -> Any:
        if reference in self.queue:
            self.queue.remove(reference)
        probes = reference.method in ("ping", "progress")
        if probes and self.dead_pings:
            self.dead_pings -= 1
            raise ActorDiedError
        if reference.method == "run" and self.deaths[reference.task]:
            self.deaths[reference.task] -= 1
            self.queue.clear()
            self.instance = None
            raise ActorDiedError
        if self.instance is None:
            self.instance = self.make()
        try:
            return getattr(self.instance, reference.method)(*reference.arguments)
        except Exception as error:
            raise RayTaskError(reference.method, f"traceback of {error!r}", error) from None


class _Class:
    def __init__(self, fake: FakeRay, of: type, options: dict[str, Any]) -> None:
        self.fake, self.of, self.chosen = fake, of, options

    def options(self, **options: Any) -> _Class:
        return _Class(self.fake, self.of, options)

    def remote(self, *arguments: Any) -> FakeActor:
        self.fake.actors.append(FakeActor(self.fake, lambda: self.of(*arguments), self.chosen))
        return self.fake.actors[-1]


class FakeRay:
    """Stands in for the module `ray`."""

    def __init__(self, cluster: dict[str, float] | None = None) -> None:
        self.cluster = {"CPU": 2.0} if cluster is None else cluster
        self.clock = Clock()
        self.numbers = itertools.count()
        self.actors: list[FakeActor] = []
        self.sent: list[tuple[FakeActor, str]] = []
        """Tasks in the order in which they were sent, and where."""
        self.killed: list[FakeActor] = []
        self.init_options: dict[str, Any] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        for module in modules:
            monkeypatch.setattr(module, "ray", self)
            if hasattr(module, "time"):
                monkeypatch.setattr(module, "time", self.clock)

    def init(self, **options: Any) -> None:
        self.init_options = options

    def shutdown(self) -> None: ...

    def cluster_resources(self) -> dict[str, float]:
        return self.cluster

    def remote(self, of: type) -> _Class:
        return _Class(self, of, {})

    def wait(
        self, references: Sequence[Reference], num_returns: int = 1, timeout: float = 0.0
    ) -> tuple[list[Reference], list[Reference]]:
        assert references and num_returns <= len(references), "Ray refuses this"
        oldest_first = sorted(references, key=lambda reference: reference.number)
        ready = [reference for reference in oldest_first if reference.performed or reference.actor.ready(reference)]
        ready = ready[:num_returns]
        for reference in ready:
            reference.perform()
        if len(ready) < num_returns:
            self.clock.sleep(timeout)
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference: Reference) -> Any:
        assert not reference.taken, "a result is read once"
        reference.taken = True
        reference.perform()
        if reference.error is not None:
            raise reference.error
        return reference.result

    def kill(self, actor: FakeActor, no_restart: bool = True) -> None:
        self.killed.append(actor)
        actor.hangs, actor.instance = set(), None
        actor.queue.clear()
