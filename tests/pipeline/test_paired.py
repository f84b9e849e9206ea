"""Paired gains, against numpy on whole arrays of draws [seeds, captions]."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adatsq_pipe.pipeline import paired
from tests.support.compared import compared

CAPTIONS, SEEDS = 5, 3
Draws = npt.NDArray[np.float64]


def _row(errors: Draws, **values: Any) -> dict[str, Any]:
    """A row with these latent errors, in the order of `samples.parquet`: all captions with one seed, then the next."""
    pictures = [{"psnr": 30.0, "latent_error": float(error)} for error in errors.ravel()]
    return compared(**paired.paired_columns(pictures, CAPTIONS), **values)


@pytest.fixture
def errors() -> Draws:
    """Latent errors of two rows that share what is hard about a draw, [row, seed, caption]."""
    random = np.random.default_rng(4)
    hard = random.normal(0, 2, (SEEDS, CAPTIONS))
    found: Draws = np.exp(-4 + hard + random.normal([[[0.0]], [[-1.0]]], 0.3, (2, SEEDS, CAPTIONS)))
    return found


def test_a_gain_is_the_mean_over_draws_and_its_interval_is_over_captions(errors: Draws) -> None:
    rows = paired.with_gains([_row(errors[0], method="adatsq"), _row(errors[1], method="quarot")])
    gains = 10 * np.log10(errors[0] / errors[1])
    captions = gains.mean(axis=0)
    assert rows[1]["latent_gain"] == pytest.approx(gains.mean()) and gains.mean() > 3
    assert rows[1]["latent_gain_interval"] == pytest.approx(1.96 * captions.std(ddof=1) / CAPTIONS**0.5)
    geometric = [np.prod(e) ** (1 / e.size) for e in errors]
    assert rows[1]["latent_gain"] == pytest.approx(10 * np.log10(geometric[0] / geometric[1]))
    assert rows[1]["latent_error_geometric"] == pytest.approx(geometric[1])
    assert (rows[0]["latent_gain"], rows[0]["latent_gain_interval"]) == (0, 0)
    unpaired = 1.96 * (10 * np.log10(errors[1])).mean(axis=0).std(ddof=1) / CAPTIONS**0.5
    assert rows[1]["latent_gain_interval"] < unpaired / 2, "what is hard about a caption cancels"


def test_the_baseline_is_adatsq_as_published_or_else_rounding_at_the_same_bits(errors: Draws) -> None:
    found = [
        _row(errors[0]),
        _row(errors[1], method="adatsq", change='{"temporal": false}'),
        _row(errors[1], method="adatsq"),
        _row(errors[1], bits="w3a3"),
        _row(errors[0], bits="w3a3", method="quarot"),
        _row(errors[0], bits="w3a3.6", method="adatsq", change='{"temporal": false}'),
    ]
    rows = paired.with_gains(found)
    assert [row["latent_gain_over"] for row in rows] == ["adatsq", "adatsq", "adatsq", "rtn", "rtn", None]
    gain = (10 * np.log10(errors[0] / errors[1])).mean()
    expected = [-gain, 0, 0, 0, -gain]
    assert [row["latent_gain"] for row in rows[:5]] == pytest.approx(expected) and rows[5]["latent_gain"] is None
    assert [paired.is_baseline(row) for row in rows] == [False, False, True, True, False, False]


def test_rows_of_other_captions_are_not_paired() -> None:
    rows = paired.with_gains(
        [compared(), compared(method="quarot", latent_log_by_caption=[-1.0], psnr_by_caption=[1.0])]
    )
    assert rows[1]["latent_gain"] is None and rows[1]["psnr_over_rtn"] is None


def test_a_single_caption_has_a_gain_and_no_interval() -> None:
    one = {"psnr_by_caption": [30.0]}
    base, row = compared(latent_log_by_caption=[-1.0], **one), compared(method="q", latent_log_by_caption=[-2.0], **one)
    found = paired.with_gains([base, row])[1]
    assert found["latent_gain"] == pytest.approx(10 * np.log10(np.e)) and found["latent_gain_interval"] is None


def test_a_latent_error_counts_as_at_least_1e_30() -> None:
    pictures = [{"psnr": 30.0, "latent_error": error} for error in (0.0, 1e-40, 1e-30, 1e-10)]
    assert paired.paired_columns(pictures, 4)["latent_log_by_caption"] == pytest.approx(np.log([1e-30] * 3 + [1e-10]))


def test_psnr_is_by_caption_over_seeds_and_its_median_over_draws() -> None:
    pictures = [{"psnr": value, "latent_error": 0.1} for value in (10.0, 20.0, 12.0, 26.0, 14.0, 29.0)]
    columns = paired.paired_columns(pictures, 2)
    assert columns["psnr_by_caption"] == [12.0, 25.0], "all captions with the first seed, then with the next"
    assert columns["psnr_median"] == 17.0


def test_psnr_is_paired_by_caption_with_rounding_to_nearest() -> None:
    found = [
        compared(),
        compared(method="quarot", psnr_by_caption=[31.0, 35.0]),
        compared(method="rtn", change='{"weight_clip": true}', psnr_by_caption=[29.0, 32.0]),
        compared(method="quarot", bits="w3a3"),
    ]
    rows = paired.with_gains(found)
    assert [row["psnr_over_rtn"] for row in rows] == [None, 3.0, 0.5, None]
    # Differences 2 and 4: a standard deviation of sqrt(2) over two captions.
    assert rows[1]["psnr_over_rtn_interval"] == pytest.approx(1.96)
