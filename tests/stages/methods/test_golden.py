"""What each method comes to on a trained model: its latent error at w4a4, to two digits.

Faults that change every run alike show here: the figures come from earlier runs of this test, on a CPU in float32. Four
steps and two captions measure the wiring, not the methods (see tests/bench/results for those).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from adatsq_pipe.storage import tables
from tests.whole import harness

pytestmark = pytest.mark.run

QUICK = {
    "adatsq": 0.0123,
    "endpoint": 0.0131,
    "orbitquant": 0.0837,
    "ptq4dit": 0.239,
    "q_dit": 0.131,
    "quarot": 0.0615,
    "rtn": 0.114,
    "smoothquant": 0.0303,
}
SLOW = {
    "svdquant": 0.00225,
    "tq_dit": 0.15,
    "vidit_q": 0.0179,
}
"""Methods whose solve or search takes most of a minute."""
SETTINGS = (
    "model.call.num_inference_steps=4",
    "data.prompts=['a red circle', 'a blue square']",
    "data.batch=2",
    "evaluate.prompts=['a white cross', 'a green triangle']",
    "evaluate.seeds=1",
    "evaluate.batch=2",
    "capture.rows=64",
    "search.rollout_prompts=2",
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all rows, so that they share one capture."""
    return tmp_path_factory.mktemp("golden") / "run"


@pytest.mark.parametrize("golden", [QUICK, pytest.param(SLOW, marks=pytest.mark.extended)], ids=["quick", "slow"])
def test_the_latent_error_of_every_method(golden: dict[str, float], run_dir: Path) -> None:
    sets = [f"--set={text}" for text in SETTINGS]
    model = ("--run-dir", str(run_dir), "--model", "scenes/flux-dev", "--executor", "inline")
    done = harness.run("compare", *model, "--methods", ",".join(golden), "--bits", "w4a4", *sets)
    assert done.returncode == 0, done.stderr
    errors = {row["method"]: row["latent_error"] for row in tables.read(run_dir / "compare.parquet")}
    assert {method: errors[method] for method in golden} == pytest.approx(golden, rel=0.05)
