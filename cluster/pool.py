"""A pool of Ray actors that live as long as the run, each fed one key at a time.

An actor opens the worker class it is told to and keeps it open; told another, it changes over. A worker class whose
units take milliseconds may say `ahead = 2`: then a second key waits at the actor already. Nothing is remembered in
Ray: a key whose actor died is given to the next one, at most `retries` times.
"""

from __future__ import annotations

import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from adatsq_pipe.cluster.errors import ClusterUnreachable, Stopped, WorkerLost
from adatsq_pipe.cluster.resources import Resources

_LOST = (ActorDiedError, ActorUnavailableError)


class _Host:
    """The actor: one process, one open worker."""

    def __init__(self) -> None:
        self._opened: tuple[object, Any] | None = None

    def do(self, worker: Callable[[Any], Any], context: Any, key: str) -> Any:
        wanted = (worker.__module__, worker.__qualname__, context)
        if self._opened is None or self._opened[0] != wanted:
            self._opened = None
            self._opened = (wanted, worker(context))
        return self._opened[1](key)


class Crew:
    """Handles of the pool's actors and the feeding loop; can itself be sent to an actor."""

    def __init__(self, hosts: list[Any], retries: int) -> None:
        self.hosts, self.retries, self.stopping = hosts, retries, False

    def stop(self) -> None:
        self.stopping = True

    def stream(self, worker: Callable[[Any], Any], context: Any, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
        waiting, idle = deque(keys), deque(self.hosts * int(getattr(worker, "ahead", 1)))
        running: dict[Any, tuple[Any, str]] = {}
        lost: Counter[str] = Counter()
        while waiting or running:
            while waiting and idle and not self.stopping:
                host, key = idle.popleft(), waiting.popleft()
                running[host.do.remote(worker, context, key)] = (host, key)
            if not running:
                break
            ready, _ = ray.wait(list(running), timeout=0.5)
            for reference in ready:
                host, key = running.pop(reference)
                idle.append(host)
                try:
                    result = ray.get(reference)
                except _LOST:
                    lost[key] += 1
                    if lost[key] > self.retries:
                        raise WorkerLost(
                            f"the worker of unit {key!r} died {lost[key]} times (out of memory?); what is done is kept"
                        ) from None
                    waiting.append(key)
                except RayTaskError as error:
                    raise cause(error) from None
                else:
                    yield key, result
        if self.stopping:
            raise Stopped


def cause(error: RayTaskError) -> BaseException:
    """The exception as the worker raised it, not wrapped."""
    return error.cause if isinstance(error.cause, BaseException) else error


class Pool:
    """The Ray executor. `modules` are imported by the director while it waits for its turn."""

    def __init__(self, resources: Resources, run: str, modules: Sequence[str] = ()) -> None:
        self._run, self._modules = run, tuple(modules)
        self._director: Any = None
        self._prepared = False
        connect(resources)
        host = ray.remote(_Host).options(
            num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_restarts=-1
        )
        self._crew = Crew([host.remote() for _ in range(resources.width)], resources.retries)
        self._stopping = False

    def stop(self) -> None:
        """Let every unit in hand finish, then raise Stopped."""
        self._stopping = True
        self._crew.stop()

    def stream(self, worker: Callable[[Any], Any], context: Any, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """What workers return as they finish. The director's process comes up meanwhile, beside opened workers."""
        from adatsq_pipe.cluster import director

        for item in self._crew.stream(worker, context, keys):
            if not self._prepared:
                self._prepared, self._director = True, director.start(self._run, self._modules)
            yield item

    def conduct(self, drive: Callable[..., None], context: Any, report: Callable[[int, int], None]) -> None:
        """Run `drive` in a named actor of its own; if that dies, in its successor, which resumes from what is done."""
        from adatsq_pipe.cluster import director

        actor, self._director = self._director or director.start(self._run, self._modules), None
        director.conduct(actor, self._crew, drive, context, report, lambda: self._stopping)

    def close(self) -> None:
        ray.shutdown()


def connect(resources: Resources) -> None:
    """Start a Ray of our own, or join the one at `resources.address`. Raises ClusterUnreachable."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if resources.address == "local":
        ray.init(
            address="local",
            num_cpus=int(resources.width * max(resources.cpus_per_worker, 1.0)) + 1,
            num_gpus=int(resources.gpus) or None,
            object_store_memory=128 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
        return
    _knock(resources.address)
    try:
        ray.init(address=resources.address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _unreachable(resources.address, line) from None


def _knock(address: str) -> None:
    """Ray tries a dead address for minutes; a connection that is refused says the same at once."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from None


def _unreachable(address: str, reason: str) -> ClusterUnreachable:
    return ClusterUnreachable(
        f"no Ray cluster answers at {address!r} ({reason}); "
        "start one with `ray start --head`, or leave --address out to run here"
    )
