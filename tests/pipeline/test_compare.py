"""Comparing methods: which rows there are, and how they are run and measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adatsq_pipe.pipeline import compare, config, report, runner
from adatsq_pipe.pipeline.compare import Row
from adatsq_pipe.pipeline.compare_table import COLUMNS, cells
from adatsq_pipe.pipeline.comparison import read_comparison
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.kind_quality import Figure, Metric
from adatsq_pipe.stages.allocation.trellis import SearchSettings
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.stage import STAGES
from adatsq_pipe.stages.evaluation import floor
from adatsq_pipe.stages.methods._recipe import Recipe, methods
from adatsq_pipe.storage.rundir import RunDir
from tests.support.compared import compared
from tests.support.made_store import make_store


def load(sets: Sequence[str]) -> RunConfig:
    return config.load(preset=None, file=None, sets=sets, model=None, previous=None)


def planned(wanted: str, bits: str, *, sweep: bool = False) -> list[Row]:
    return compare.rows(wanted, bits, sweep=sweep, load=load)


def test_all_is_every_method_at_every_pair_of_bits() -> None:
    rows = planned("all", "w4a4,w3a3")
    assert [(row.method, row.bits) for row in rows] == [(m, b) for b in ("w4a4", "w3a3") for m in methods()]
    floats = {("mxfp4", "w3a3"), ("nvfp4", "w3a3")}
    assert {(row.method, row.bits) for row in rows if row.refused} == floats, "they have no other width than 4 bits"
    tables = [row.config.settings for row in rows]
    assert all(table[Recipe].weight_bits == row.weight_bits for row, table in zip(rows, tables, strict=True))


def test_a_mean_that_is_no_whole_number_is_for_searched_policies() -> None:
    rows = planned("all", "w3a3.6")
    measured = [row for row in rows if not row.refused]
    assert {row.method for row in measured} == {"adatsq", "endpoint", "tmpdiff", "vidit_q"}
    assert all(row.config.settings[SearchSettings].budget == 3.6 for row in measured)
    assert "3.6 is a mean of several" in next(row.refused for row in rows if row.method == "orbitquant")
    assert planned("adatsq", "w3a3")[0].config.settings[SearchSettings].budget == 3.1


@pytest.mark.parametrize(("label", "mean"), [("w3a2.5", 2.5), ("w2a2", 2.0), ("w4a3.05", 3.05), ("w2a4", 4.0)])
def test_a_searched_policy_has_the_mean_bits_of_its_label(label: str, mean: float) -> None:
    rows = [row for row in planned("all", label) if row.config.settings[Recipe].allocation in compare._SEARCHED]
    assert {row.method for row in rows} == {"adatsq", "endpoint", "tmpdiff"}
    searches = [row.config.settings[SearchSettings] for row in rows]
    assert [search.budget for search in searches] == [mean] * 3
    assert all(search.bits[0] <= mean for search in searches if search.bits), "a width at or below the mean"
    own = next(row.config.settings[Recipe] for row in rows if row.method == "endpoint")
    assert own.weight_budget == own.weight_bits == int(label[1])


def test_a_uniform_method_takes_a_mean_of_several_widths_with_a_search_of_its_own() -> None:
    def searched(sets: Sequence[str]) -> RunConfig:
        return load([*sets, "recipe.allocation='trellis'"])

    (row,) = compare.rows("orbitquant", "w3a2.5", sweep=False, load=searched)
    search = row.config.settings[SearchSettings]
    assert not row.refused
    assert (search.budget, search.bits) == (2.5, (2, 3, 4, 8))


def test_sweeping_turns_the_main_knob() -> None:
    changes = [dict(row.change) for row in planned("smoothquant", "w4a4", sweep=True)]
    assert changes == [{}, {"smoothing_alpha": 0.3}, {"smoothing_alpha": 0.7}]
    own = planned("endpoint", "w3a3.6", sweep=True)
    assert [dict(row.change) for row in own][-1] == {"search.beam": True}
    assert own[-1].config.settings[SearchSettings].beam and not own[0].config.settings[SearchSettings].beam
    widths = [row.config.settings[SearchSettings].bits for row in own]
    assert widths[0] == () and widths[-3] == (3, 4, 8)
    assert [row.config.settings[Recipe].weight_budget for row in own][:3] == [3.0, 0.0, 0.0]
    ablations = planned("adatsq", "w4a4", sweep=True)
    assert [row.config.settings[Recipe].temporal for row in ablations] == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("wanted", "bits", "words"),
    [
        ("rtn,quark", "w4a4", "unknown method 'quark'; choose from adatsq, "),
        ("rtn", "w4", "w<weight bits>a"),
        ("rtn", "w7a4", "w7a4"),
        ("rtn", "w3a1.5", "w3a1.5: write .* activations 2 to 16"),
        ("rtn", "w2.5a4", "w2.5a4: write .* weights have 2, 3"),
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


def test_a_finished_row_is_measured_by_its_summary_and_its_draws() -> None:
    (row,) = planned("rtn", "w4a4")
    figure = SimpleNamespace(mean=1.0, standard_error=0.5)
    quality = {"psnr": figure, "ssim": figure, "latent_error": figure, "asked_for": None, "captions": 2, "seeds": 3}
    half = Figure(mean=21.5, interval=None)
    quality["metrics"] = {
        "clip": Metric(quantized=half, full_precision=Figure(mean=22.0, interval=0.5), difference=half)
    }
    spent = {"model": 1.0, "algebra": 2.0, "overhead": 3.0}
    summary: Any = SimpleNamespace(
        quality=SimpleNamespace(**quality),
        bits=SimpleNamespace(weights_with_scales=4.25, activations_mean=4.0),
        size=SimpleNamespace(layer_ratio=3.8),
        seconds=dict.fromkeys(compare.CALIBRATION, spent),
        fingerprint="f",
    )
    samples = [{"psnr": value, "latent_error": value / 100} for value in (10.0, 20.0, 12.0, 26.0, 14.0, 29.0)]
    values = compare.measured(row, summary, samples)
    assert [values[f"clip{end}"] for end in ("", "_interval", "_full_precision")] == [21.5, None, 22.0]
    assert values["psnr_by_caption"] == [12.0, 25.0], "all captions with the first seed, then with the next"
    right = [np.log([0.10, 0.12, 0.14]).mean(), np.log([0.20, 0.26, 0.29]).mean()]
    assert values["latent_log_by_caption"] == pytest.approx(right)
    assert values["psnr_interval"] == pytest.approx(0.98) and values["weight_bits_over"] == pytest.approx(0.25)
    assert values["calibration_seconds"] == pytest.approx(5 * 6.0)
    summary.quality.captions = 1
    one = compare.measured(row, summary, samples[:3])
    assert one["psnr_interval"] is None and "| 1.0 | " in " | ".join(cells({**compared(), **one, "latent_gain": None}))


class Runs:
    """A runner that records its calls; `broken` fails. Its context has a measured floor."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, broken: str = "") -> None:
        self.asked: list[tuple[str, int]] = []
        self.written: list[tuple[int, str]] = []
        self.lines: list[str] = []
        self.broken, self.context = broken, make_store(folder).context
        patch.setattr(runner, "execute", self.execute)
        patch.setattr(report, "summarize", lambda *arguments: None)
        patch.setattr(compare, "samples", lambda context: [])
        patch.setattr(compare, "measured", lambda row, *rest: {"method": row.method})
        patch.setattr(compare, "with_gains", lambda found: found)
        patch.setattr(compare, "cells", lambda row: ["x"] * len(COLUMNS))
        patch.setattr(compare, "columns", lambda row: list(COLUMNS))

        def write(found: Any, left: Any, run: Any, model: str, line: str) -> dict[str, str]:
            self.written.append((len(found), line))
            return {"compare.png": "no room"}

        patch.setattr(compare, "write", write)
        patch.setattr(floor, "floor_of", lambda context: floor.Floor(**NO_FLOOR))
        self.outcome = compare.execute(planned("rtn,quarot", "w4a4"), RunDir(folder), None, self, "the command")

    def execute(
        self, made: RunConfig, run: RunDir, stages: list[str], *rest: Any, extra: Any = (), publish: bool
    ) -> Any:
        assert not publish
        asked = "floor" if extra else made.settings[Recipe].method
        assert stages == (["floor"] if extra else list(STAGES)) and list(extra) in ([], [floor.STAGE])
        self.asked.append((asked, len(stages)))
        if asked == self.broken:
            raise StageError("it broke")
        return [], self.context, True

    def say(self, line: str) -> None:
        self.lines.append(line)


NO_FLOOR: dict[str, Any] = {"latent_error": None, "psnr": None, "draws": 0, "weights": 7, "changed": 0}


def test_the_floor_is_measured_once_after_the_first_finished_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(tmp_path, monkeypatch, broken="rtn")
    assert [name for name, _ in runs.asked] == ["rtn", "quarot", "floor"]
    assert runs.outcome.failed == 1 and runs.written[0] == (0, "")
    assert runs.written[1] == (1, floor.Floor(**NO_FLOOR).line("float32"))
    left = read_comparison(RunDir(tmp_path))
    assert [(row.name, row.bits, row.refused, row.failed) for row in left.left_out] == [
        ("rtn", "w4a4", "it broke", True)
    ]
    assert left.floor == runs.written[1][1] and left.model == "flux-dev" and left.command == "the command"
    assert left.references == {runs.context.fingerprints["evaluate"]: runs.context.fingerprints["reference"]}
    assert runs.lines[-1].startswith("compare.html: "), "these rows have no pictures: a line, and the comparison stands"


def test_rows_stand_without_a_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(tmp_path, monkeypatch, broken="floor")
    assert [name for name, _ in runs.asked] == ["rtn", "floor", "quarot"], "it is tried once"
    assert runs.written == [(1, ""), (2, "")] and runs.outcome.failed == 0
    assert "the floor could not be measured: it broke" in runs.lines
    assert runs.lines.count("compare.png could not be drawn: no room") == 2
