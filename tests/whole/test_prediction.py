"""The end-to-end effects predict what rolling out does to the final latents."""

from __future__ import annotations

import numpy as np
import pytest

from adatsq_pipe.stages.calibration.survey import survey_of
from tests.bench.prediction import Prediction, is_near, predictions, random_policy
from tests.bench.rollout import context_of, rounded_mask
from tests.whole import harness

pytestmark = [pytest.mark.run, pytest.mark.extended]
SETTINGS = ("recipe.method=endpoint", "search.bits=[]", "data.count=8")
POLICIES = 20


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Prediction]:
    run = tmp_path_factory.mktemp("prediction") / "run"
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    start = ["run", "--run-dir", str(run), "--model", "scenes/flux-schnell", "--executor", "inline"]
    done = harness.run(*start, "--stages", "capture..solve", *options)
    assert done.returncode == 0, done.stderr
    context, random = context_of(run), np.random.default_rng(0)
    mask = rounded_mask(survey_of(context))
    return predictions(context, [random_policy(random, mask) for _ in range(POLICIES)])


def test_random_policies_are_predicted_within_a_factor_of_three(found: list[Prediction]) -> None:
    assert len(found) == POLICIES
    assert [round(p.ratio, 2) for p in found if not is_near(p.ratio)] == []
