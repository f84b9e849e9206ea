"""The Ray executor: a pool of worker actors that live as long as the run, and where its search runs.

On a cluster the search has an actor of its own, the coordinator. A Ray of this machine ends with this process, so the
search runs here: a process less, and its imports.
"""

from __future__ import annotations

import errno
import importlib
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import ray

from adatsq_pipe.cluster.actor_pool import ActorPool, WorkerActor
from adatsq_pipe.cluster.coordinator import Coordinator, Report, Search
from adatsq_pipe.cluster.errors import ClusterUnreachable, Stopped
from adatsq_pipe.cluster.ray_helpers import end_helpers
from adatsq_pipe.cluster.resources import Resources
from adatsq_pipe.cluster.session_folder import of_ray, session_folder
from adatsq_pipe.cluster.worker_slot import ContextT, ResultT, WorkerClass

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from adatsq_pipe.cluster.worker_template import WorkerTemplate


class RayExecutor:
    """Runs tasks on a local Ray or a cluster, for the run that `run` names. Raises ClusterUnreachable.

    What runs the search imports `modules` while it waits for it, so that the workers do not wait for the imports. On a
    Ray of this machine workers are copies of `template`, if there is one; the executor closes it.
    """

    def __init__(
        self, resources: Resources, run: str, modules: Sequence[str] = (), template: WorkerTemplate | None = None
    ) -> None:
        self._run, self._modules = run, tuple(modules)
        self._coordinator: Coordinator | None = None
        self._search_prepared = False
        self._stopping = False
        self._resources = resources
        self._here = resources.address == "local"
        """Whether Ray ends with this process."""
        with ExitStack() as opened:
            if template is not None:
                opened.callback(template.close)
            connect(resources, opened.enter_context(session_folder()) if self._here else None, template)
            self._opened = opened.pop_all()
        self._actor_class = ray.remote(WorkerActor).options(
            num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_restarts=-1
        )
        self._pool = ActorPool(
            [self._actor_class.remote() for _ in range(self._worker_count())], resources.retries, self._new_actors
        )

    @property
    def live_workers(self) -> int:
        """Workers known to be alive."""
        return len(self._pool.live)

    def _worker_count(self) -> int:
        """Workers to ask for: what the settings say, or as many as the cluster can hold now."""
        if self._here or self._resources.workers:
            return self._resources.local_workers
        return self._resources.workers_on(ray.cluster_resources())

    def _new_actors(self) -> list[ActorHandle]:
        """Actors for nodes that have joined."""
        return [self._actor_class.remote() for _ in range(self._worker_count() - len(self._pool.actors))]

    def stop(self) -> None:
        """Finish the tasks in progress, then raise Stopped."""
        self._stopping = True
        self._pool.stop()

    def stream(
        self, worker_class: WorkerClass[ContextT, ResultT], context: ContextT, keys: Iterable[str]
    ) -> Iterator[tuple[str, ResultT]]:
        """Yield (key, result) as tasks finish. Raises Stopped, TaskFailed, WorkerLost, and what is not retryable.

        The first result prepares the search: by then the workers have opened, and it slows down none.
        """
        for result in self._pool.stream(worker_class, context, keys):
            if not self._search_prepared:
                self._search_prepared = True
                self._prepare_search()
            yield result

    def offer(self, worker_class: WorkerClass[ContextT, ResultT], context: ContextT, keys: Iterable[str]) -> None:
        """Workers that a stream leaves idle may do these tasks beside it, in place of those offered before. What is not
        done by then is done by the stream of these tasks, which also reports what fails."""
        self._pool.spare.offer(worker_class, context, keys)

    def _prepare_search(self) -> None:
        """Start the coordinator's process, or import beside the workers what a search needs here."""
        if self._here:
            threading.Thread(target=_import_all, args=(self._modules,), daemon=True).start()
        else:
            self._coordinator = Coordinator(self._run, self._modules)

    def coordinate(self, search: Search[ContextT], context: ContextT, report: Report) -> None:
        """Run `search(pool, context, report)`, on a cluster in the coordinator. Raises Stopped, WorkerLost, and what
        the search raises."""
        if self._here:
            if self._stopping:
                raise Stopped
            search(self._pool, context, report)
            return
        coordinator, self._coordinator = self._coordinator or Coordinator(self._run, self._modules), None
        coordinator.run(search, self._pool, context, report, lambda: self._stopping)

    def close(self) -> None:
        """End a local Ray, or leave the cluster; the actors end with it."""
        ray.shutdown()
        self._opened.close()


def _import_all(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)


def connect(resources: Resources, folder: str | None = None, template: WorkerTemplate | None = None) -> None:
    """Start a Ray on this machine, or join the one at `resources.address`. Raises ClusterUnreachable.

    A local Ray keeps its session in `folder` [default: where Ray puts it], and its workers are copies of `template`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if resources.address == "local":
        _start(resources, folder, template)
        return
    _probe(resources.address)
    try:
        ray.init(address=resources.address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise _unreachable(resources.address, _reason(error)) from None


def gpus_of(address: str) -> int:
    """GPUs that the running cluster has now. Joins it and leaves it again. Raises ClusterUnreachable."""
    connect(Resources(address=address))
    try:
        return int(ray.cluster_resources().get("GPU", 0.0))
    finally:
        ray.shutdown()


def _start(resources: Resources, folder: str | None, template: WorkerTemplate | None) -> None:
    if template is not None:
        # Workers that Ray starts before it is asked for any would be new processes, which nothing uses.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    try:
        ray.init(
            address="local",
            num_cpus=int(resources.local_workers * max(resources.cpus_per_worker, 1.0)),
            num_gpus=int(resources.gpus) or None,
            object_store_memory=128 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            **({"_temp_dir": folder} if folder else {}),
            **({"runtime_env": {"py_executable": template.py_executable}} if template else {}),
        )
    except (OSError, ValueError, RuntimeError, TimeoutError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ClusterUnreachable(
            f"Ray cannot start on this machine ({_reason(error)}); look at its logs below {folder or of_ray()}, or run "
            "without Ray: --executor inline"
        ) from error
    end_helpers()


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _probe(address: str) -> None:
    """Raise ClusterUnreachable at once if nothing listens at HOST:PORT; Ray itself would try for minutes."""
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
        "start one with `ray start --head`, or leave out --address to run on this machine"
    )
