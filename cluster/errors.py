"""What can happen where work runs. Importing this starts nothing and imports no Ray."""

from __future__ import annotations


class Stopped(Exception):
    """A stop was asked for; the units in hand were finished and committed."""


class WorkerLost(RuntimeError):
    """A unit's worker died more often than the retries allow."""


class ClusterUnreachable(RuntimeError):
    """No Ray cluster answers at the given address."""


class JobRefused(RuntimeError):
    """The cluster did not take a job, or knows none of that id; the message says what to do."""


class LostSight(RuntimeError):
    """The connection to a cluster was lost for good. The job may well go on."""
