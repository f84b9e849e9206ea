"""The tables of `compare`: which rows are shown, in which order, and what they say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adatsq_pipe.pipeline import compare_table
from adatsq_pipe.pipeline.paired import with_gains
from adatsq_pipe.storage import tables
from adatsq_pipe.storage.rundir import RunDir
from tests.support.compared import compared
from tests.support.drawn import coloured

REFUSED = SimpleNamespace(name="svdquant", bits="w4a4", refused="a group of 64 does not divide 341")


def test_the_best_of_each_method_has_the_least_latent_error_and_ablations_stay() -> None:
    found = [
        compared(latent_error_geometric=0.03, psnr=32.0),
        compared(latent_error_geometric=0.02, change='{"weight_clip": true}'),
        compared(latent_error_geometric=0.01, change='{"weight_group": 16}', weight_bits=5.0),
        compared(method="adatsq", latent_error_geometric=0.02),
        compared(method="adatsq", latent_error_geometric=0.03, change='{"temporal": false}'),
    ]
    shown = [(row["method"], row["latent_error_geometric"]) for row in compare_table.best(found)]
    assert shown == [("rtn", 0.02), ("rtn", 0.01), ("adatsq", 0.02), ("adatsq", 0.03)]


def test_a_row_says_its_gain_and_quality() -> None:
    found = with_gains([compared(), compared(method="quarot", latent_log_by_caption=[-4.0, -2.7])])
    text = compare_table.markdown(found, [REFUSED], "flux-dev", "Floor: low.")
    # Gains of 1 and .2 in natural logarithms: a mean of .6 and a standard deviation of .8 / sqrt(2), over two captions.
    gain, half = 6 / np.log(10), 1.96 * 8 / np.log(10) / 2
    figures = f"{gain:+.2f} ± {half:.2f} | 0.0625 | 30.0 ± 1.0 | 31.5 | 0.900 | 0.80 ± 0.10 | -0.02 ± 0.03 | 12 s |"
    assert f"| quarot | 4.20 (+0.20) | 4.00 (+0.00) | 3.80x | {figures}" in text
    assert "| rtn | 4.20 (+0.20) | 4.00 (+0.00) | 3.80x | 0 (baseline) | 0.0625 |" in text
    assert "## w4a4: latent gain over rtn as published" in text
    assert "4 held-out captions x 3 paired seeds" in text and "0.82" in text
    assert text.endswith(
        "12 s |\n\nFloor: low.\n\n- svdquant at w4a4 was left out: a group of 64 does not divide 341\n"
    )
    header = next(line for line in text.splitlines() if line.startswith("| method"))
    assert header.count("|") == next(line for line in text.splitlines() if line.startswith("| rtn")).count("|")


def test_optional_metrics_are_columns_where_rows_have_them() -> None:
    found = with_gains([{**compared(), "clip": 24.125, "clip_interval": 0.5, "lpips": 0.0625, "lpips_interval": None}])
    text = compare_table.markdown(found, [], "m")
    assert "| SSIM | LPIPS | CLIP score | prompt match |" in text
    assert "| 0.900 | 0.062 | 24.12 ± 0.50 | 0.80 ± 0.10 |" in text
    assert "LPIPS" not in compare_table.markdown(with_gains([compared()]), [], "m")


def test_rows_are_sorted_by_gain_and_those_without_one_follow_by_psnr() -> None:
    found = with_gains(
        [
            compared(),
            compared(method="worse", latent_log_by_caption=[-2.0, -2.0], psnr=45.0),
            compared(method="better", latent_log_by_caption=[-4.0, -4.0], psnr=20.0),
            compared(method="dim", latent_log_by_caption=[-1.0], psnr_by_caption=[1.0], psnr=21.0),
            compared(method="bright", latent_log_by_caption=[-9.0], psnr_by_caption=[1.0], psnr=22.0),
        ]
    )
    lines = compare_table.markdown(found, [], "m").splitlines()
    order = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert order == ["method", "better", "rtn", "worse", "bright", "dim"]
    alone = compare_table.markdown(with_gains([compared(method="quarot")]), [], "m")
    assert "## w4a4: no latent gain without adatsq or rtn" in alone and "3.80x |  | 0.0625" in alone


def test_one_caption_has_a_gain_without_an_interval() -> None:
    one = {"psnr_by_caption": [30.0]}
    found = with_gains(
        [compared(latent_log_by_caption=[-1.0], **one), compared(method="q", latent_log_by_caption=[-2.0], **one)]
    )
    assert "| +4.34 | 0.0625 |" in compare_table.markdown(found, [], "m")


def test_tables_and_plot_are_written_without_scores_too(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("score", "score_interval", "score_difference", "score_difference_interval"))
    found = [compared(**nothing), compared(method="quarot", psnr=36.0, bits="w3a3", **nothing)]
    compare_table.write(found, [REFUSED], RunDir(tmp_path), "m", "Floor: low.")
    assert tables.read(tmp_path / "compare.parquet") == with_gains(found)
    text = (tmp_path / "compare.md").read_text()
    assert "was left out" in text and "Floor: low." in text
    assert coloured(tmp_path / "compare.png") > 0.001, "an empty figure has axes alone"


def test_the_plot_has_latent_error_in_decibels_and_the_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    shown: list[tuple[str, list[float], list[float]]] = []

    def keep(figure: plt.Figure) -> None:
        for axis in figure.axes:
            (bars, *_) = axis.containers
            (low, high), *_ = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
            shown.append((axis.get_ylabel(), list(bars.lines[0].get_ydata()), [low, high]))

    monkeypatch.setattr(plt, "close", keep)
    compare_table.plot([compared(latent_error_geometric=0.001)], tmp_path / "a.png")
    decibels, score = shown
    assert "-10 log10" in decibels[0] and decibels[1] == pytest.approx([30.0])
    half = 1.96 * 0.5 / 2**0.5 * 10 / np.log(10) / 2**0.5  # Logarithms -3 and -2.5.
    assert decibels[2] == pytest.approx([30 - half, 30 + half])
    assert "prompt" in score[0] and score[1] == pytest.approx([0.8]) and score[2] == pytest.approx([0.7, 0.9])


def test_the_front_is_what_nothing_beats_with_as_few_bits() -> None:
    rows = [
        compared(weight_bits=w, latent_error_geometric=e)
        for w, e in ((3.0, 0.9), (4.0, 0.1), (4.5, 0.2), (8.0, 0.01), (4.0, 0.5))
    ]
    front = compare_table.front_of_rows(rows, compare_table.decibels)
    assert [row["latent_error_geometric"] for row in front] == [0.9, 0.1, 0.01]


def test_a_plot_that_fails_is_noted_and_the_tables_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(results: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("no\nroom")

    monkeypatch.setattr(compare_table, "plot", fails)
    assert compare_table.write([compared()], [], RunDir(tmp_path), "m") == {"compare.png": "ValueError: no room"}
    assert {path.name for path in tmp_path.iterdir()} == {"compare.md", "compare.parquet"}
