"""Which units the capture stage has, before and after its survey."""

from __future__ import annotations

from pathlib import Path

from adatsq_pipe.stages.calibration.capture import STAGE
from adatsq_pipe.stages.calibration.survey import unit_waves
from tests.support.made_store import make_store


def test_units_follow_from_the_captions_and_from_the_steps_that_the_survey_found(tmp_path: Path) -> None:
    store = make_store(tmp_path, data={"prompts": ["a", "b", "c"], "batch": 2}, capture={"block": 2})
    trajectories = ["trajectory/000", "trajectory/001"]
    assert unit_waves(store.context) == (trajectories, ["survey", "left"], [])
    assert STAGE.expected(store.context) is None
    store.write_survey(timesteps=[5.0, 4.0, 3.0, 2.0, 1.0])
    activations = [f"activations/{block:03d}-{batch:03d}" for block in range(3) for batch in range(2)]
    assert unit_waves(store.context) == (trajectories, ["survey", "left"], activations)
    assert STAGE.expected(store.context) == 2 + 2 + 6
