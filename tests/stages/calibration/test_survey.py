"""Which units the capture stage has, before and after its survey."""

from __future__ import annotations

from pathlib import Path

from adatsq_pipe.stages.calibration.capture import STAGE
from adatsq_pipe.stages.calibration.survey import activation_units, unit_waves
from tests.support.made_store import make_store


def test_units_follow_from_the_captions_and_from_the_steps_that_the_survey_found(tmp_path: Path) -> None:
    store = make_store(tmp_path, data={"prompts": ["a", "b", "c"], "batch": 2}, capture={"block": 2})
    first = {"survey": ["survey"], "left": ["left"]}
    runs = ["trajectory/000", "trajectory/001"]
    assert unit_waves(store.context) == (first, {run: [run] for run in runs})
    assert STAGE.expected(store.context) is None and activation_units(store.context) == {}
    store.write_survey(timesteps=[5.0, 4.0, 3.0, 2.0, 1.0])
    inputs = {batch: [f"activations/{block:03d}-{batch:03d}" for block in range(3)] for batch in range(2)}
    assert activation_units(store.context) == inputs
    assert unit_waves(store.context) == (first, {run: [run, *inputs[batch]] for batch, run in enumerate(runs)})
    assert STAGE.expected(store.context) == 2 + 2 + 6
