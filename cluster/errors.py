"""What can happen where work runs. Importing this starts nothing and imports no Ray."""

from __future__ import annotations


class Stopped(Exception):
    """A stop was asked for; the units in hand were finished and committed."""


class WorkerLost(RuntimeError):
    """A unit's worker died more often than the retries allow."""


class ClusterUnreachable(RuntimeError):
    """No Ray cluster answers at the given address."""
