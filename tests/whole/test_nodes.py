"""A cluster whose nodes join, leave and die, whose driver dies, whose head dies: the same bytes in the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nodes import Nodes, drive
from tests.whole import harness

pytestmark = [pytest.mark.run, pytest.mark.extended]


def _until(driver: harness.Started, run: Path, stage: str, units: int) -> None:
    harness.wait_for(lambda: harness.count(run, stage) >= units, driver)


def test_nodes_driver_and_head_die_in_turn(undisturbed: Path, tiny_flux: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    nodes = Nodes(2)
    driver = drive(run, tiny_flux, nodes.address)
    try:
        _until(driver, run, "capture", 1)
        nodes.kill(0)
        nodes.join()
        _until(driver, run, "solve", 3)
        driver.kill()
        driver = drive(run, tiny_flux, nodes.address)
        _until(driver, run, "search", 3)
        nodes.kill(0)
        nodes.join()
        _until(driver, run, "search", 8)
        nodes.end()
        driver.kill()
        nodes = Nodes(1)
        driver = drive(run, tiny_flux, nodes.address)
        _until(driver, run, "evaluate", 1)
        nodes.join()
        assert driver.wait().returncode == 0, driver.said()
        harness.same(run, undisturbed)
    finally:
        driver.kill()
        nodes.end()
