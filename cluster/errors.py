"""What can happen where work runs. Importing this starts nothing and imports no Ray."""

from __future__ import annotations


class Stopped(Exception):
    """A stop was asked for; the units in hand were finished and committed."""


class WorkerLost(RuntimeError):
    """A unit's worker died; or there is no worker to be had."""

    certain = False


class UnitFailed(RuntimeError):
    """A unit failed wherever it was tried, while the others were finished."""

    def __init__(self, unit: str, tries: int, error: str, traceback: str, others: tuple[str, ...] = ()) -> None:
        super().__init__(unit, tries, error, traceback, others)
        self.unit, self.tries, self.error, self.traceback, self.others = unit, tries, error, traceback, others

    def __str__(self) -> str:
        times = "once" if self.tries == 1 else f"{self.tries} times"
        more = f" (and so did {', '.join(self.others[:3])}{' ...' if self.others[3:] else ''})" if self.others else ""
        return f"unit {self.unit!r} failed {times}{more}: {self.error}. What is done is kept; run again to try only it"


class ClusterUnreachable(RuntimeError):
    """No Ray cluster answers at the given address."""


class JobRefused(RuntimeError):
    """The cluster did not take a job, or knows none of that id; the message says what to do."""


class LostSight(RuntimeError):
    """The connection to a cluster was lost for good. The job may well go on."""
