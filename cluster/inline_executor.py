"""The executor without Ray: every task in this process, one after another. For debuggers and small runs.

A task that fails is not tried again, because here it would fail the same way; the others are finished first.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator

from adatsq_pipe.cluster.errors import Stopped
from adatsq_pipe.cluster.failure_tracker import FailureTracker
from adatsq_pipe.cluster.worker_slot import ContextT, ResultT, WorkerClass, WorkerSlot


class InlineExecutor:
    """Runs tasks here, in the order of their keys as passed."""

    def __init__(self) -> None:
        self._stopping = False
        self._slot = WorkerSlot()

    def stop(self) -> None:
        """Finish the task in progress, then raise Stopped."""
        self._stopping = True

    def stream(
        self, worker_class: WorkerClass[ContextT, ResultT], context: ContextT, keys: Iterable[str]
    ) -> Iterator[tuple[str, ResultT]]:
        """Yield (key, result) for each task. Raises Stopped, TaskFailed, and errors that are not retryable."""
        failures = FailureTracker(retries=0)
        for key in keys:
            if self._stopping:
                raise Stopped
            try:
                result = self._slot.run(worker_class, context, key)
            except Exception as error:
                failures.failed(key, error, traceback.format_exc())
            else:
                failures.succeeded()
                yield key, result
        failures.raise_failures()
        if self._stopping:
            raise Stopped

    def offer(self, worker_class: WorkerClass[ContextT, ResultT], context: ContextT, keys: Iterable[str]) -> None:
        """Nothing is ever idle here."""

    def coordinate(
        self,
        search: Callable[[InlineExecutor, ContextT, Callable[[int, int], None]], None],
        context: ContextT,
        report: Callable[[int, int], None],
    ) -> None:
        """Run `search(executor, context, report)` here."""
        search(self, context, report)

    def close(self) -> None:
        """Nothing to release."""
