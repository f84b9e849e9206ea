"""The readers of Fisher scores: the mean over batches of captions, at every score's own step."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adatsq_pipe.stages.calibration.scores import curvature_of, fisher_scores
from tests.support.made_context import FIRST
from tests.support.made_store import make_store


def test_the_mean_over_batches_stands_at_every_scores_own_step(tmp_path: Path) -> None:
    for block in (1, 2, 3):
        store = make_store(tmp_path / str(block), capture={"block": block})
        store.write_survey()
        store.write_scores(curvature=True)
        found, by_channel = fisher_scores(store.context), curvature_of(store.context, FIRST)
        for step in range(3):
            wanted = (store.scores[0, step] + store.scores[1, step]) / 2
            np.testing.assert_allclose(found[step], wanted.numpy(), rtol=1e-12)
            both = store.curvature[FIRST][0, step] + store.curvature[FIRST][1, step]
            np.testing.assert_allclose(by_channel[step], both.numpy(), rtol=1e-6)
