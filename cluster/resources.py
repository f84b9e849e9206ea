"""What Ray is asked for: how many workers, how much of a GPU each, which cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where and how wide. None of this changes a byte of the result."""

    address: str = "local"
    workers: int = 0
    cpus_per_worker: float = 1.0
    gpus: float = 0.0
    gpus_per_worker: float = 0.0
    retries: int = 3

    @property
    def width(self) -> int:
        """Workers; 0 means one for each CPU this process may use, divided by what a worker takes."""
        if self.workers:
            return self.workers
        if self.gpus_per_worker:
            return max(1, int(self.gpus / self.gpus_per_worker))
        return max(1, int(len(os.sched_getaffinity(0)) / max(self.cpus_per_worker, 1.0)))

    def width_in(self, cluster: Mapping[str, float]) -> int:
        """Workers that a cluster of these resources ("CPU", "GPU") holds, and at least one."""
        parts = [(self.cpus_per_worker, cluster.get("CPU", 0.0)), (self.gpus_per_worker, cluster.get("GPU", 0.0))]
        return max(1, min((int(there / each) for each, there in parts if each), default=1))
