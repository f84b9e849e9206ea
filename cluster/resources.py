"""What a run asks Ray for: which cluster, how many workers, and how much of a GPU each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where a run computes, and how many workers it has. None of this changes a byte of the result."""

    address: str = "local"
    """ "local" starts a Ray on this machine; anything else is the address of a running cluster."""
    workers: int = 0
    """0 = as many as fit."""
    cpus_per_worker: float = 1.0
    gpus: float = 0.0
    """GPUs of this machine that a local Ray may use."""
    gpus_per_worker: float = 0.0
    """A fraction lets several workers share a GPU."""
    retries: int = 3
    """How often a failed task is tried again."""

    @property
    def local_workers(self) -> int:
        """Workers on this machine: `workers` if set, else as many as its GPUs hold, else as its CPUs hold."""
        if self.workers:
            return self.workers
        if self.gpus_per_worker:
            return max(1, int(self.gpus / self.gpus_per_worker))
        return max(1, int(len(os.sched_getaffinity(0)) / max(self.cpus_per_worker, 1.0)))

    def workers_on(self, cluster: Mapping[str, float]) -> int:
        """Workers that fit on a cluster with these resources (its "CPU" and "GPU"); at least one."""
        shares = [(self.cpus_per_worker, cluster.get("CPU", 0.0)), (self.gpus_per_worker, cluster.get("GPU", 0.0))]
        return max(1, min((int(available / share) for share, available in shares if share), default=1))
