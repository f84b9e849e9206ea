"""A Ray cluster of several nodes on this machine, whose nodes and head can be killed, and a run that goes on in it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.whole import harness


class Nodes:
    """A head that does no work, and `count` nodes with one CPU each: processes of their own, killed by SIGKILL."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes: list[Any] = []
        for _ in range(count):
            self.join()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def join(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1, include_dashboard=False))

    def kill(self, place: int) -> None:
        """The node's raylet and all that lives below it."""
        self.cluster.remove_node(self.nodes.pop(place), allow_graceful=False)

    def end(self) -> None:
        """The whole cluster at once, head first."""
        for process in [p for node in (self.cluster.head_node, *self.nodes) for p in _processes(node)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.nodes = []
        self.cluster.shutdown()


def _processes(node: Any) -> list[psutil.Process]:
    found = []
    for kind in node.all_processes.values():
        for entry in kind:
            try:
                process = psutil.Process(entry.process.pid)
                found += [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
    return found


def drive(run_dir: Path, model: Path, address: str) -> harness.Started:
    """`adatsq-pipe run` on the cluster."""
    return harness.Started(*harness.tiny(run_dir, model, "--address", address, executor="ray"))


def torn(run_dir: Path) -> int:
    """Tries that were killed: folders they were to fill, which are swept when the next run begins."""
    return sum(
        (folder / unit).is_dir()
        for stage in run_dir.glob("*/*/attempts")
        for folder in stage.iterdir()
        for unit in _units(folder)
    )


def _units(folder: Path) -> set[str]:
    """Names of units below an attempt's folder: what holds no folder but the arrays' own."""
    found = set[str]()
    for root, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(".zarr")]
        if not folders:
            found.add(os.path.relpath(root, folder))
    return found
