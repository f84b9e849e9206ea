"""Decides what follows a failed task: another try, giving it up while others continue, or the end of the stream.

Error classes of other rooms declare two attributes. `fatal = True`: every task would meet this error, so the stream
ends at once. `retryable = False`: another try would fail the same way; the error reaches the user as it was raised.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass

from adatsq_pipe.cluster.errors import TaskFailed

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_FAILURES_WITHOUT_SUCCESS = 3
"""The stream ends after this many tasks failed for good if none has succeeded."""


@dataclass(frozen=True)
class _Failure:
    error: BaseException
    traceback: str


class FailureTracker:
    """Counts the failures of one stream's tasks. A task is tried at most 1 + `retries` times."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._tries: Counter[str] = Counter()
        self._successes = 0
        self._given_up: dict[str, _Failure] = {}

    def succeeded(self) -> None:
        self._successes += 1

    def failed(self, task: str, error: BaseException, traceback: str) -> bool:
        """Count a failure and return whether to try the task again.

        Raises the error itself if it is fatal, and `raise_failures()` if nothing seems to work.
        """
        if getattr(error, "fatal", False) or (isinstance(error, OSError) and error.errno in DISK_FULL):
            raise error
        self._tries[task] += 1
        if self._tries[task] <= self._retries and _retryable(error):
            return True
        self._given_up[task] = _Failure(error, traceback)
        if not self._successes and len(self._given_up) >= MAX_FAILURES_WITHOUT_SUCCESS:
            self.raise_failures()
        return False

    def raise_failures(self) -> None:
        """Raise for the first task that failed for good: its own error if that is not retryable, else TaskFailed."""
        for task, failure in sorted(self._given_up.items(), key=lambda item: item[0]):
            if not _retryable(failure.error):
                raise failure.error
            others = tuple(sorted(set(self._given_up) - {task}))
            reason = f"{type(failure.error).__name__}: {failure.error}"
            raise TaskFailed(task, self._tries[task], reason, failure.traceback, others) from failure.error


def _retryable(error: BaseException) -> bool:
    return bool(getattr(error, "retryable", True))
