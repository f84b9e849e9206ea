"""Which sensitivity a run measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from adatsq_pipe.stages.allocation.sensitivity import sensitivity_of
from adatsq_pipe.stages.calibration.unit_keys import DIFFERENTIABLE
from tests.support.made_store import make_store


@pytest.mark.parametrize(
    ("method", "obstacle", "wanted"),
    [
        ("adatsq", "", "step"),
        ("endpoint", "", "trajectory"),
        ("endpoint", "the loop uses numpy", "step, because the loop uses numpy"),
    ],
)
def test_the_sensitivity_is_named_with_the_obstacle(method: str, obstacle: str, wanted: str, tmp_path: Path) -> None:
    store = make_store(tmp_path, recipe={"method": method, "conditioning_group": 0})
    manifest = store.manifest("fisher")
    manifest.open_unit(DIFFERENTIABLE)
    manifest.commit(DIFFERENTIABLE, value={"obstacle": obstacle})
    assert sensitivity_of(store.context) == wanted
