"""The Ray executor: a crew of actors that live as long as the run, and the director of the search."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray

from adatsq_pipe.cluster.crew import Crew, Host
from adatsq_pipe.cluster.errors import ClusterUnreachable
from adatsq_pipe.cluster.resources import Resources


class Pool:
    """The Ray executor. `modules` are imported by the director while it waits for its turn."""

    def __init__(self, resources: Resources, run: str, modules: Sequence[str] = ()) -> None:
        self._run, self._modules = run, tuple(modules)
        self._director: Any = None
        self._prepared = False
        connect(resources)
        self._resources = resources
        self._kind = ray.remote(Host).options(
            num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_restarts=-1
        )
        self._crew = Crew([self._kind.remote() for _ in range(self._width())], resources.retries)
        self._crew.grow = self._grow
        self._stopping = False

    @property
    def answering(self) -> int:
        """Workers known to be up."""
        return self._crew.answering

    def _width(self) -> int:
        """Workers that are asked for; on a cluster of others, as many as it can hold now."""
        if self._resources.address == "local" or self._resources.workers:
            return self._resources.width
        return self._resources.width_in(ray.cluster_resources())

    def _grow(self) -> list[Any]:
        """Actors for nodes that have joined."""
        return [self._kind.remote() for _ in range(self._width() - len(self._crew.hosts))]

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
        if self._resources.address == "local":
            _end_monitor()
        ray.shutdown()


def _end_monitor() -> None:
    """End the monitor of a Ray of our own, which would add nodes if it could: asked by Ray to end it takes a second."""
    node = getattr(ray._private.worker, "_global_node", None)
    for started in getattr(node, "all_processes", {}).get("monitor", []):
        started.process.kill()


def connect(resources: Resources) -> None:
    """Start a Ray of our own, or join the one at `resources.address`. Raises ClusterUnreachable."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
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
