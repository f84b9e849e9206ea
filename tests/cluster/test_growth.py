"""Nodes that join while a stage is under way are put to work; workers whose node died are not waited for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import ray

from adatsq_pipe.cluster.ray_executor import RayExecutor
from adatsq_pipe.cluster.resources import Resources
from tests.bench.sleepers import Nap, Sleeper
from tests.nodes import Nodes
from tests.support.scripted_workers import Script, search

pytestmark = [pytest.mark.run, pytest.mark.extended]


def test_a_node_that_joins_is_put_to_work() -> None:
    nodes = Nodes(1)
    try:
        pool = RayExecutor(Resources(address=nodes.address), "growth")
        try:
            done = list[str]()
            for key, _ in pool.stream(Sleeper, Nap(1.0), [str(i) for i in range(60)]):
                done.append(key)
                if len(done) == 2:
                    assert pool.live_workers == 1
                    nodes.join()
                if pool.live_workers == 2:
                    break
            assert pool.live_workers == 2, "the second node was never used"
        finally:
            pool.close()
    finally:
        nodes.end()


def test_a_director_does_not_wait_for_a_worker_whose_node_died(tmp_path: Path) -> None:
    nodes = Nodes(2)
    try:
        pool = RayExecutor(Resources(address=nodes.address), "loss")
        try:
            keys = (str(i) for i in range(1000))
            while pool.live_workers < 2:
                assert list(pool.stream(Sleeper, Nap(0.1), [next(keys)]))
            nodes.kill(0)
            while ray.cluster_resources()["CPU"] > 1:
                time.sleep(0.1)
            pool.coordinate(search, Script(str(tmp_path)), lambda done, total: None)
            assert (tmp_path / "result").read_text() == "AX,BX"
        finally:
            pool.close()
    finally:
        nodes.end()
