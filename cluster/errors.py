"""Errors of the place where work runs. Importing this module starts nothing and does not import Ray.

Messages call a task "unit", because that is what the user finds on disk and in `status`.
"""

from __future__ import annotations


class Stopped(Exception):
    """A stop was requested; the tasks in progress were finished first."""


class WorkerLost(RuntimeError):
    """The process that ran a task died, or no worker process comes up."""


class TaskFailed(RuntimeError):
    """A task failed at every try, while the others were finished."""

    def __init__(self, task: str, tries: int, reason: str, traceback: str, others: tuple[str, ...] = ()) -> None:
        super().__init__(task, tries, reason, traceback, others)
        self.task, self.tries, self.reason, self.traceback, self.others = task, tries, reason, traceback, others

    def __str__(self) -> str:
        times = "once" if self.tries == 1 else f"{self.tries} times"
        more = f" (and so did {', '.join(self.others[:3])}{' ...' if self.others[3:] else ''})" if self.others else ""
        return f"unit {self.task!r} failed {times}{more}: {self.reason}. Finished units are kept; run again to retry"


class ClusterUnreachable(RuntimeError):
    """No Ray cluster answers at the configured address."""


class JobRefused(RuntimeError):
    """The cluster refused a request, or knows no job of that id; the message says what to do."""


class ConnectionLost(RuntimeError):
    """The cluster stopped answering. The job may still be running."""
