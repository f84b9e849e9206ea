"""Comparing methods: which rows there are, which are shown, and what the tables say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adatsq_pipe.pipeline import compare, config
from adatsq_pipe.pipeline.compare import Row
from adatsq_pipe.pipeline.config import ConfigError, RunConfig
from adatsq_pipe.stages.allocation.trellis import SearchSettings
from adatsq_pipe.stages.methods._recipe import Recipe, methods
from tests.support.drawn import coloured


def load(sets: Sequence[str]) -> RunConfig:
    return config.load(preset=None, file=None, sets=sets, model=None, kept=None)


def planned(wanted: str, bits: str, *, sweep: bool = False) -> list[Row]:
    return compare.rows(wanted, bits, sweep=sweep, load=load)


def test_all_is_every_method_at_every_pair_of_bits() -> None:
    rows = planned("all", "w4a4,w3a3")
    assert [(row.method, row.bits) for row in rows] == [(m, b) for b in ("w4a4", "w3a3") for m in methods()]
    assert not any(row.refused for row in rows)
    tables = [row.config.settings for row in rows]
    assert all(table[Recipe].weight_bits == row.weight_bits for row, table in zip(rows, tables, strict=True))


def test_a_mean_that_is_no_whole_number_is_for_searched_policies() -> None:
    rows = planned("all", "w3a3.6")
    assert {row.method for row in rows} == {"adatsq", "vidit_q"}
    assert all(row.config.settings[SearchSettings].budget == 3.6 for row in rows)
    assert planned("adatsq", "w3a3")[0].config.settings[SearchSettings].budget == 3.1


def test_sweeping_turns_the_main_knob() -> None:
    changes = [dict(row.change) for row in planned("smoothquant", "w4a4", sweep=True)]
    assert changes == [{}, {"smoothing_alpha": 0.3}, {"smoothing_alpha": 0.7}]
    ablations = planned("adatsq", "w4a4", sweep=True)
    assert [row.config.settings[Recipe].temporal for row in ablations] == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("wanted", "bits", "words"),
    [
        ("rtn,quark", "w4a4", "unknown method 'quark'; choose from adatsq, "),
        ("rtn", "w4", "w<weight bits>a"),
        ("rtn", "w7a4", "w7a4"),
    ],
)
def test_what_is_unknown_is_named(wanted: str, bits: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        planned(wanted, bits)


def test_a_method_that_the_model_cannot_take_is_refused_before_any_work(tmp_path: Path) -> None:
    def wide(sets: Sequence[str]) -> RunConfig:
        return load([*sets, "recipe.group_fit=false", "model.path='scenes/z-image'"])

    (row,) = compare.rows("svdquant", "w4a4", sweep=False, load=wide)
    assert "weight_group 64 does not divide the input width 341" in row.refused


def result(**values: Any) -> dict[str, Any]:
    base = {
        "method": "rtn", "change": "{}", "bits": "w4a4", "weight_bits": 4.2, "activation_bits": 4.0,
        "weight_bits_over": 0.2, "activation_bits_over": 0.0, "layers_smaller": 3.8, "psnr": 30.0, "psnr_interval": 1.0,
        "ssim": 0.9, "ssim_interval": 0.1, "latent_error": 0.1, "latent_error_interval": 0.01, "score": 0.8,
        "score_interval": 0.1, "full_precision_score": 0.82, "full_precision_score_interval": 0.1,
        "score_difference": -0.02, "score_difference_interval": 0.03, "calibration_seconds": 12.0, "captions": 4,
        "seeds": 3, "fingerprint": "f", "psnr_by_caption": [29.0, 31.0],
    }  # fmt: skip
    return base | values


def test_the_best_of_each_method_is_shown_and_ablations_stay() -> None:
    found = [
        result(psnr=30.0),
        result(psnr=31.0, change='{"weight_clip": true}'),
        result(psnr=39.0, change='{"weight_group": 16}', weight_bits=5.0),
        result(method="adatsq", psnr=37.0),
        result(method="adatsq", psnr=36.0, change='{"temporal": false}'),
    ]
    shown = compare.best(found)
    assert [(row["method"], row["psnr"]) for row in shown] == [
        ("rtn", 31.0), ("rtn", 39.0), ("adatsq", 37.0), ("adatsq", 36.0),
    ]  # fmt: skip
    text = compare.markdown(shown, [], "flux-dev")
    assert "| rtn (weight_clip=True) | 4.20 (+0.20) | 4.00 (+0.00) | 3.80x | 31.0 ± 1.0 |" in text
    assert "4 held-out captions x 3 paired seeds" in text and "0.82" in text


def test_gains_are_paired_by_caption_with_rounding_to_nearest() -> None:
    found = [
        result(),
        result(method="quarot", psnr_by_caption=[31.0, 35.0]),
        result(method="rtn", change='{"weight_clip": true}', psnr_by_caption=[29.0, 32.0]),
        result(method="quarot", bits="w3a3"),
    ]
    rows = compare.against_floor(found)
    assert [row["psnr_over_rtn"] for row in rows] == [None, 3.0, 0.5, None]
    # Differences 2 and 4: a standard deviation of sqrt(2) over two captions.
    assert rows[1]["psnr_over_rtn_interval"] == pytest.approx(1.96)
    assert "| +3.0 ± 2.0 |" in compare.markdown(rows, [], "flux-dev")


def test_tables_and_plot_are_written_without_scores_too(tmp_path: Path) -> None:
    from adatsq_pipe.storage import tables
    from adatsq_pipe.storage.rundir import RunDir

    nothing = dict.fromkeys(("score", "score_interval", "score_difference", "score_difference_interval"))
    found = [result(**nothing), result(method="quarot", psnr=36.0, bits="w3a3", **nothing)]
    refused = planned("svdquant", "w4a4")
    compare.write(found, refused, RunDir(tmp_path), "m")
    assert tables.read(tmp_path / "compare.parquet") == compare.against_floor(found)
    assert "was left out" in (tmp_path / "compare.md").read_text()
    assert coloured(tmp_path / "compare.png") > 0.001, "an empty figure has axes alone"


def test_the_front_is_what_nothing_beats_with_as_few_bits() -> None:
    rows = [result(weight_bits=w, psnr=p) for w, p in ((3.0, 20.0), (4.0, 30.0), (4.5, 29.0), (8.0, 40.0), (4.0, 25.0))]
    assert [row["psnr"] for row in compare._front(rows, "psnr")] == [20.0, 30.0, 40.0]


def test_a_rows_psnr_by_caption_is_the_mean_over_its_seeds() -> None:
    (row,) = planned("rtn", "w4a4")
    figure = SimpleNamespace(mean=1.0, standard_error=0.5)
    quality = {"psnr": figure, "ssim": figure, "latent_error": figure, "asked_for": None, "captions": 2, "seeds": 3}
    spent = {"model": 1.0, "algebra": 2.0, "overhead": 3.0}
    summary: Any = SimpleNamespace(
        quality=SimpleNamespace(**quality),
        bits=SimpleNamespace(weights_with_scales=4.25, activations_mean=4.0),
        size=SimpleNamespace(layer_ratio=3.8),
        seconds=dict.fromkeys(compare.CALIBRATION, spent),
        fingerprint="f",
    )
    samples = [{"psnr": value} for value in (10.0, 20.0, 12.0, 26.0, 14.0, 29.0)]
    values = compare.measured(row, summary, samples)
    assert values["psnr_by_caption"] == [12.0, 25.0], "all captions with the first seed, then with the next"
    assert values["psnr_interval"] == pytest.approx(0.98) and values["weight_bits_over"] == pytest.approx(0.25)
    assert values["calibration_seconds"] == pytest.approx(5 * 6.0)
