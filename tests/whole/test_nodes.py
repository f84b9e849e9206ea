"""A cluster whose nodes join, leave and die, whose driver dies, whose head dies: the same bytes in the end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.nodes import Driver, Nodes
from tests.whole import harness

pytestmark = pytest.mark.whole


def _until(driver: Driver, run: Path, stage: str, units: int) -> None:
    end = time.monotonic() + PATIENCE
    while harness.count(run, stage) < units:
        assert driver.process.poll() is None, driver.said()
        assert time.monotonic() < end, f"{stage} never had {units} units: {driver.said()}"
        time.sleep(0.05)


def test_nodes_driver_and_head_die_in_turn(undisturbed: Path, tiny_flux: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    nodes = Nodes(2)
    driver = Driver(run, tiny_flux, nodes.address)
    try:
        _until(driver, run, "capture", 1)
        nodes.kill(0)
        nodes.join()
        _until(driver, run, "solve", 3)
        driver.kill()
        driver = Driver(run, tiny_flux, nodes.address)
        _until(driver, run, "search", 3)
        nodes.kill(0)
        nodes.join()
        _until(driver, run, "search", 8)
        nodes.end()
        driver.kill()
        nodes = Nodes(1)
        driver = Driver(run, tiny_flux, nodes.address)
        _until(driver, run, "evaluate", 1)
        nodes.join()
        assert driver.process.wait(timeout=PATIENCE) == 0, driver.said()
        harness.same(run, undisturbed)
    finally:
        driver.kill()
        nodes.end()
