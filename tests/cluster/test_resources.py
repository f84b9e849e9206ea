"""How many workers fit: counted by hand."""

from __future__ import annotations

import os

import pytest

from adatsq_pipe.cluster.resources import Resources


@pytest.mark.parametrize(
    ("resources", "workers"),
    [
        (Resources(workers=5, gpus=1, gpus_per_worker=1.0), 5),
        (Resources(gpus=2, gpus_per_worker=0.5), 4),
        (Resources(gpus=1, gpus_per_worker=0.4), 2),
        (Resources(gpus=0, gpus_per_worker=1.0), 1),
        (Resources(), 8),
        (Resources(cpus_per_worker=3.0), 2),
        (Resources(cpus_per_worker=0.5), 8),
        (Resources(cpus_per_worker=16.0), 1),
    ],
)
def test_workers_of_a_machine_with_eight_cpus(
    resources: Resources, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert resources.local_workers == workers


@pytest.mark.parametrize(
    ("resources", "cluster", "workers"),
    [
        (Resources(cpus_per_worker=2), {"CPU": 9.0}, 4),
        (Resources(gpus_per_worker=0.5), {"CPU": 64.0, "GPU": 3.0}, 6),
        (Resources(gpus_per_worker=0.25), {"CPU": 2.0, "GPU": 3.0}, 2),
        (Resources(gpus_per_worker=1), {"CPU": 64.0}, 1),
        (Resources(), {}, 1),
        (Resources(cpus_per_worker=0.0), {"CPU": 64.0}, 1),
    ],
)
def test_workers_of_a_cluster(resources: Resources, cluster: dict[str, float], workers: int) -> None:
    assert resources.workers_on(cluster) == workers
