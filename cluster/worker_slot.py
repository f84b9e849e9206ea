"""The one open worker of a process, called with one task at a time. An actor and the inline executor both use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

ContextT = TypeVar("ContextT")
ResultT = TypeVar("ResultT")

Worker = Callable[[str], ResultT]
"""Called with a task's key, returns the task's result.

It may have `recover(key, error) -> bool`, called when a task fails: True means that the worker has changed so that the
same task may now pass (it uses less memory, for one). The slot then calls it again at once, and no failure is counted.
"""
WorkerClass = Callable[[ContextT], Worker[ResultT]]
"""A class at the top level of a module, or a value that stands for one; called once per process with a context (which
loads a model). Two that are equal are the same worker.

It may have `queue_depth = 2`, for tasks of milliseconds: a second task then waits at the actor already.
"""


class WorkerSlot:
    """Keeps one worker open, and replaces it when a task needs another class or context."""

    def __init__(self) -> None:
        self._identity: object = None
        self._worker: Worker[object] | None = None

    def open(self, worker_class: WorkerClass[ContextT, ResultT], context: ContextT) -> Worker[ResultT]:
        """The worker of that class and context; opened now unless it is open already.

        The worker that was open before is released first, so that two models are never in memory together.
        """
        identity = (worker_class, context)
        if self._worker is None or self._identity != identity:
            self._worker = None
            self._worker, self._identity = worker_class(context), identity
        return cast(Worker[ResultT], self._worker)

    def run(self, worker_class: WorkerClass[ContextT, ResultT], context: ContextT, task: str) -> ResultT:
        """The worker's result for the task. Raises what the worker raises, unless it recovers."""
        worker = self.open(worker_class, context)
        while True:
            try:
                return worker(task)
            except Exception as error:
                recover: Callable[[str, BaseException], bool] | None = getattr(worker, "recover", None)
                if recover is None or not recover(task, error):
                    raise
