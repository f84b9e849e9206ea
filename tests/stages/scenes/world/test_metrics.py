"""Means, standard errors and Frechet distances by hand and against scipy."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy import linalg

from adatsq_pipe.stages.scenes.world import metrics


def test_a_captions_seeds_are_one_observation() -> None:
    pairs = [(0, 1.0), (0, 0.0), (1, 1.0), (1, 1.0), (2, 1.0), (2, 1.0)]
    mean = metrics.caption_mean(pairs)
    assert mean["mean"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert mean["standard_error"] == pytest.approx(statistics.stdev([0.5, 1, 1]) / math.sqrt(3))
    assert mean["captions"] == 3


def test_a_single_caption_has_no_error() -> None:
    assert metrics.caption_mean([(7, 1.0), (7, 0.0)]) == {"mean": 0.5, "standard_error": 0.0, "captions": 1}


def test_the_total_is_the_mean_of_the_tasks_whatever_their_counts() -> None:
    rows = [{"task": "single", "entry": 0, "right": 1} for _ in range(3)]
    rows += [{"task": "counting", "entry": e, "right": int(e == 1)} for e in (1, 2) for _ in range(3)]
    means = metrics.task_means(rows, "right")
    assert set(means["tasks"]) == {"single", "counting"}
    assert means["tasks"]["counting"] == {"mean": 0.5, "standard_error": pytest.approx(0.5), "captions": 2}
    assert means["total"] == {"mean": 0.75, "standard_error": pytest.approx(math.hypot(0, 0.5) / 2)}


def test_the_paired_difference_has_its_own_error() -> None:
    same = [{"entry": e, "tasks": ["two"], "right": [e % 2], "reference_right": [e % 2]} for e in range(20)]
    scores = metrics.compare(same)
    assert scores["difference"] == {"mean": 0.0, "standard_error": 0.0}
    errors = statistics.stdev([0.0, 1.0] * 10) / math.sqrt(20)
    assert scores["quantized"]["total"]["standard_error"] == pytest.approx(errors)


def test_a_difference_is_quantized_less_full_precision() -> None:
    samples = [
        {"entry": 0, "tasks": ["two"], "right": [False], "reference_right": [True]},
        {"entry": 1, "tasks": ["two"], "right": [True], "reference_right": [True]},
        {"entry": 2, "tasks": ["thing", "speed"], "right": [True, False], "reference_right": [False, False]},
    ]
    scores = metrics.compare(samples)
    assert scores["full_precision"]["total"]["mean"] == pytest.approx((1 + 0 + 0) / 3)
    assert scores["quantized"]["total"]["mean"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert scores["difference"]["mean"] == pytest.approx((-0.5 + 1 + 0) / 3)


def _by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    """Heusel et al., eq. 6, with the product's square root."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root))


def test_the_frechet_distance_is_that_of_the_square_root_of_the_product() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5))
    a, b = rng.normal(size=(40, 5)), rng.normal(0.5, 1, (30, 5)) @ mixing
    assert metrics.frechet_distance(a, b) == pytest.approx(_by_sqrtm(a, b), rel=1e-6)
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a))
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_a_shift_is_its_square_and_a_stretch_is_the_square_of_the_deviations_difference() -> None:
    a = np.random.default_rng(1).normal(size=(50, 3))
    assert metrics.frechet_distance(a, a + np.array([3.0, 0, 4.0])) == pytest.approx(25)
    stretched = a.mean(0) + 3 * (a - a.mean(0))
    assert metrics.frechet_distance(a, stretched) == pytest.approx(np.square(2 * a.std(0, ddof=1)).sum())


def test_a_single_picture_has_no_spread() -> None:
    rng = np.random.default_rng(2)
    one, many = rng.normal(size=(1, 4)), rng.normal(size=(30, 4))
    expected = np.square(one[0] - many.mean(0)).sum() + many.var(0, ddof=1).sum()
    assert metrics.frechet_distance(one, many) == pytest.approx(expected)
    assert metrics.frechet_distance(one, one + 2.0) == pytest.approx(16)
