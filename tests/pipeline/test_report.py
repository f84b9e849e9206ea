"""The report's figures on a store written by hand: each is computed here a second time, from the numbers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adatsq_pipe.pipeline import costs, finished, pictures, report
from adatsq_pipe.pipeline.config import ClusterSettings, RunConfig
from adatsq_pipe.pipeline.summary import Facts, Mean, read_summary
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.unit_keys import DIFFERENTIABLE
from adatsq_pipe.storage import tables, tensors
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.rundir import RunDir
from tests.support.drawn import pixels
from tests.support.made_context import FIRST, MODULATION, SECOND
from tests.support.made_store import MadeStore, make_store

PSNR = [30.0, 33.0, 36.0, 41.0]
ERRORS = [0.02, 0.05, 0.01, 0.04]
STEPS = [[0.0, 0.1, 0.4], [0.0, 0.3, 0.2], [0.0, 0.2, 0.6], [0.0, 0.2, 0.0]]
"""Relative errors of the latents by picture and step."""


NO_FACTS = Facts(
    sensitivity="", layers_not_called=(), layers_called_repeatedly_and_left_alone=(), left_alone=(),
    weight_only_layers=(), memory={}, damping_raised={}, micro_batch={}, placement={}, smoothing={}, groups_fitted={},
    worst_layer_error=(0.0, ""),
)  # fmt: skip


def _commit(context: Context, stage: str, unit: str, seconds: tuple[float, ...] = (), **more: Any) -> Path:
    """A unit with seconds (model, algebra, total, calls); its folder must be filled before, by `files`."""
    manifest, files = context.manifest(stage), more.pop("files", {})
    folder = manifest.open_unit(unit)
    for name, rows in files.items():
        tables.write(folder / name, rows)
    times = dict(zip(("model", "algebra", "total", "calls"), seconds, strict=False))
    manifest.commit(unit, seconds=times, **more)
    return manifest.unit_folder(unit)


def _samples(numbers: list[int]) -> dict[str, Any]:
    names = [f"caption {i}" for i in range(4)]
    rows = [
        {
            "prompt": names[i],
            "seed": 7 + i,
            "latent_error": ERRORS[i],
            "latent_psnr": PSNR[i] - 5,
            "psnr": PSNR[i],
            "ssim": 0.9 - i / 10,
        }
        for i in numbers
    ]
    steps = [{"step": t, "error": STEPS[i][t], "psnr": 10.0 * t + i} for i in numbers for t in range(3)]
    return {"samples.parquet": rows, "steps.parquet": steps}


def _store(folder: Path, **tables: Mapping[str, Any]) -> MadeStore:
    """Two batches of captions, two levels, two paths rolled out on three captions, four pictures in two units."""
    asked = {"evaluate": {"prompts": ["a", "b"], "seeds": 2}, "search": {"batches": 2, "budget": 4.25}, **tables}
    store = make_store(folder, **asked)
    c = store.context
    survey = {**store.survey(), "unused": ["blocks.0.never"], "repeated": ["blocks.0.often"]}
    _commit(c, "capture", "survey", (0.0, 0.0, 1.5), value=survey)
    _commit(c, "capture", "left", (0.0, 0.0, 0.5), value=[{"pattern": "norm", "count": 3}])
    _commit(c, "capture", "trajectory/000", (10.0, 0.0, 12.0), value={"calls": 6, "samples": 3})
    _commit(c, "capture", "trajectory/001", (5.0, 0.0, 6.0), value={"calls": 6, "samples": 1})
    _commit(c, "capture", "activations/000-000", (7.0, 1.0, 10.0), micro_batch={"from": 4, "to": 2})
    _commit(c, "capture", "activations/000-001", (7.0, 1.0, 10.0), micro_batch={"from": 4, "to": 2})
    _commit(c, "capture", "activations/001-000", (1.0, 1.0, 5.0), micro_batch={"from": 4, "to": 1})
    layers: dict[str, tuple[float, float, str, int, int]] = {
        FIRST: (0.02, 0.01, "none", 8, 3),
        SECOND: (0.07, 0.1, "scale", 128, 6),
        MODULATION: (0.03, 0.02, "scale", 64, 8),
    }
    for name, (error, damping, smoothing, group, bits) in layers.items():
        value = {
            "error": error,
            "damping": damping,
            "smoothing": smoothing,
            "spec": {"group": group, "weight_bits": bits},
        }
        _commit(c, "solve", f"layer/{name}", (1.0, 2.0, 4.0), value=value)
    store.write_scores()
    _commit(c, "fisher", DIFFERENTIABLE, value={"obstacle": ""})
    _commit(c, "search", "level/000", (20.0, 0.0, 30.0, 2.0), value={})
    _commit(c, "search", "level/001", (10.0, 0.0, 15.0, 4.0), value={})
    _commit(c, "search", "rollout/a-000", (3.0, 0.0, 4.0, 99.0), value={"calls": 6, "samples": 2})
    _commit(c, "search", "rollout/a-001", (2.0, 0.0, 4.0, 99.0), value={"calls": 6, "samples": 1})
    front = {"mean_bits": 4.2, "mac_weighted_bits": 4.1, "rollout_error": 0.003, "front": 5, "policy": store.bits}
    _commit(c, "search", "front", value=front)
    sizes = {
        "layers": 3,
        "layer_bytes_bf16": 800,
        "layer_bytes": 200,
        "transformer_bytes_bf16": 1200,
        "transformer_bytes": 500,
        "weight_bits": 4.375,
    }
    _commit(c, "assemble", "model", (0.0, 0.0, 2.0), value=sizes)
    _commit(c, "evaluate", "quantized/000", (1.0, 0.0, 3.0), files=_samples([0, 1]), value={"activation_bits": 4.0})
    _commit(c, "evaluate", "quantized/001", (1.0, 0.0, 3.0), files=_samples([2, 3]), value={"activation_bits": 5.0})
    _commit(c, "evaluate", "other", (1.0, 0.0, 3.0))
    run = RunDir.at(c.run)
    for stage, wall, facts in (
        ("capture", 20.0, {"memory": "old"}),
        ("capture", 2.5, {"memory": "fits"}),
        ("solve", 4.0, {"placement": {"workers_per_gpu": 2}}),
    ):
        run.log({"stage": stage, "fingerprint": c.fingerprints[stage], "wall": wall, **facts})
    run.log({"stage": "capture", "fingerprint": "another", "wall": 1000.0, "memory": "another"})
    run.log({"stage": "gone", "fingerprint": "another", "wall": 1000.0})
    return store


def _config(store: MadeStore) -> RunConfig:
    return RunConfig(
        settings=store.context.settings,
        cluster=ClusterSettings(),
        model=Path("/somewhere/tiny-flux"),
        request={},
        images={},
    )


def _summary(store: MadeStore) -> dict[str, Any]:
    return asdict(report.summarize(_config(store), RunDir.at(store.context.run), store.context))


def test_a_picked_point_of_the_front_is_what_the_summary_speaks_of(tmp_path: Path) -> None:
    store = _store(tmp_path, recipe={"method": "endpoint"}, assemble={"mean_bits": 3.75})
    manifest = store.manifest("search")
    front = {"mean_bits": 4.25, "mac_weighted_bits": 4.1, "rollout_error": 0.003, "front": 2, "policy": store.bits}
    own = [b for row in store.bits for b in row if b < 16]
    rows = [
        {"mean_bits": mean, "mac_weighted_bits": mean + 0.5, "predicted_error": 0.01, "rollout_error": error, "bits": b}
        for mean, error, b in ((sum(own) / 6, 0.003, own), (3.5, None, [3, 4, 3, 4, 3, 4]))
    ]
    manifest.discard("front")
    _commit(store.context, "search", "front", value=front, files={"front.parquet": rows})
    found = _summary(store)
    assert found["title"] == "tiny-flux: 4.38-bit weights, 3.50-bit activations"
    bits = {name: found["bits"][name] for name in ("activations_mean", "activations_mac_weighted", "budget")}
    assert bits == {"activations_mean": 3.5, "activations_mac_weighted": 4.0, "budget": 3.75}
    assert (found["search"]["front"], found["search"]["rollout_error"]) == (2, None)


def test_the_title_calls_a_snapshot_of_the_hubs_cache_by_its_repository(tmp_path: Path) -> None:
    store = _store(tmp_path)
    config = replace(_config(store), model=tmp_path / "models--Wan-AI--Wan2.1-T2V" / "snapshots" / "0ef5fff789")
    found = report.summarize(config, RunDir.at(store.context.run), store.context)
    assert found.title.startswith("Wan-AI/Wan2.1-T2V: ")


def test_bits_that_were_not_counted_are_not_guessed(tmp_path: Path) -> None:
    store = _store(tmp_path)
    manifest = store.manifest("evaluate")
    manifest.withdraw("quantized/001")
    _commit(store.context, "evaluate", "quantized/001", files=_samples([2, 3]))
    assert _summary(store)["bits"]["activations_run"] is None


@pytest.mark.parametrize(("run", "otherwise"), [(4.2, False), (4.204, False), (4.3, True), (8.0, True), (None, False)])
def test_a_run_at_other_bits_than_the_policy_has_is_noticed(run: float | None, otherwise: bool, tmp_path: Path) -> None:
    bits = report.summarize(_config(store := _store(tmp_path)), RunDir.at(store.context.run), store.context).bits
    assert replace(bits, activations_run=run).ran_otherwise is otherwise


def _error_of_mean(values: list[float]) -> float:
    """Of two captions a, b drawn as a, b, a, b: the standard deviation of their means over the root of two is half
    the distance between them."""
    return abs((values[0] + values[2]) / 2 - (values[1] + values[3]) / 2) / 2


def test_quality_is_the_mean_its_standard_error_and_the_worst_of_all_pictures(tmp_path: Path) -> None:
    quality = _summary(_store(tmp_path))["quality"]
    assert (quality["captions"], quality["seeds"], quality["asked_for"]) == (2, 2, None)
    ssim = [0.9, 0.8, 0.7, 0.6]
    assert quality["psnr"] == pytest.approx(
        {"mean": 35.0, "standard_error": _error_of_mean(PSNR), "worst": 30.0}, rel=1e-12
    )
    assert quality["latent_psnr"] == pytest.approx(
        {"mean": 30.0, "standard_error": _error_of_mean(PSNR), "worst": 25.0}, rel=1e-12
    )
    assert quality["latent_error"] == pytest.approx(
        {"mean": 0.03, "standard_error": _error_of_mean(ERRORS), "worst": 0.05}, rel=1e-12
    )
    assert quality["ssim"] == pytest.approx(
        {"mean": 0.75, "standard_error": _error_of_mean(ssim), "worst": 0.6}, rel=1e-9
    )
    per_step = quality["per_step"]
    assert per_step["latent_relative_error"] == pytest.approx([0.0, 0.2, 0.3])
    assert per_step["latent_psnr_db"] == pytest.approx([1.5, 11.5, 21.5])


def test_one_picture_has_no_standard_error() -> None:
    assert report._mean([[{"psnr": 30.0}]], "psnr") == Mean(mean=30.0, standard_error=0.0, worst=30.0)


def test_bits_sizes_and_facts_are_those_of_the_units(tmp_path: Path) -> None:
    store = _store(tmp_path)
    found = _summary(store)
    assert found["title"] == "tiny-flux: 4.38-bit weights, 4.20-bit activations"
    assert found["fingerprint"] == store.context.fingerprints["evaluate"]
    assert found["model"] == "/somewhere/tiny-flux"
    assert found["bits"] == {
        "weights_with_scales": 4.375,
        "weights_mean": (3 * 24 * 16 + 6 * 8 * 16) / (24 * 16 + 8 * 16),
        "weight_layers": {"3": 1, "6": 1},
        "activations_mean": 4.2,
        "activations_mac_weighted": 4.1,
        "budget": 4.25,
        "activations_run": 4.5,
    }
    assert found["size"] == {
        "layers": 3,
        "layer_bytes_bf16": 800,
        "layer_bytes": 200,
        "transformer_bytes_bf16": 1200,
        "transformer_bytes": 500,
        "layer_ratio": 4.0,
        "transformer_ratio": 2.4,
    }
    assert (found["search"]["front"], found["search"]["rollout_error"]) == (5, 0.003)
    facts = found["facts"]
    assert facts["sensitivity"] == "step"
    assert facts["layers_not_called"] == ["blocks.0.never"]
    assert facts["layers_called_repeatedly_and_left_alone"] == ["blocks.0.often"]
    assert facts["left_alone"] == [{"pattern": "norm", "count": 3}]
    assert facts["weight_only_layers"] == [MODULATION]
    assert facts["memory"] == {"capture": "fits"}, "what was said last, and of this run"
    assert facts["placement"] == {"solve": {"workers_per_gpu": 2}}
    assert facts["micro_batch"] == {"capture": {"4 -> 1": 1, "4 -> 2": 2}}
    assert list(facts["micro_batch"]["capture"]) == ["4 -> 1", "4 -> 2"]
    assert facts["smoothing"] == {"none": 1, "scale": 2}
    assert tuple(facts["worst_layer_error"]) == (0.07, SECOND)


def test_only_damping_above_the_settings_is_a_fact(tmp_path: Path) -> None:
    store = _store(tmp_path, solve={"damping": 0.02})
    assert _summary(store)["facts"]["damping_raised"] == {SECOND: 0.1}


def test_fitted_groups_are_those_of_neither_of_the_recipe_s_sizes(tmp_path: Path) -> None:
    fitting = {"weight_group": 128, "conditioning_group": 64, "group_fit": True}
    assert _summary(_store(tmp_path / "a", recipe=fitting))["facts"]["groups_fitted"] == {FIRST: 8}
    refusing = {**fitting, "group_fit": False}
    assert _summary(_store(tmp_path / "b", recipe=refusing))["facts"]["groups_fitted"] == {}
    searching = {**fitting, "group_search": [32, 64]}
    assert _summary(_store(tmp_path / "c", recipe=searching))["facts"]["groups_fitted"] == {}


def test_the_search_s_cost_counts_every_call_once_by_its_captions(tmp_path: Path) -> None:
    store = _store(tmp_path)
    calls = 2.0 + 4.0 + 6 * 2 / 4 + 6 * 1 / 4
    assert costs.search_cost(store.context) == pytest.approx(
        {"fp_trajectories_by_calls": calls / 6, "fp_trajectories_by_seconds": (20 + 10 + 3 + 2) / (10 + 5)}
    )
    assert _summary(store)["search"]["fp_trajectories_by_calls"] == pytest.approx(calls / 6)


def test_a_rollout_that_does_not_say_its_captions_had_those_of_the_settings(tmp_path: Path) -> None:
    store = _store(tmp_path, search={"batches": 1, "rollout_prompts": 2})
    manifest = store.manifest("search")
    for unit in ("rollout/a-000", "rollout/a-001"):
        manifest.discard(unit)
    _commit(store.context, "search", "rollout/b", (3.0, 0.0, 4.0), value={"calls": 6})
    assert costs.search_cost(store.context)["fp_trajectories_by_calls"] == pytest.approx((2 + 4 + 6 * 2 / 3) / 6)


def test_sensitivities_are_measured_on_the_first_batch(tmp_path: Path) -> None:
    store = _store(tmp_path)
    manifest = store.manifest("search")
    for unit in [unit for unit in manifest.units() if unit != "front"]:
        manifest.discard(unit)
    for i in (0, 1):
        _commit(store.context, "search", f"sensitivity/{i:04d}", (8.0, 0.0, 9.0, 9.0), value={})
    assert costs.search_cost(store.context) == pytest.approx(
        {"fp_trajectories_by_calls": 18 / 6, "fp_trajectories_by_seconds": 16 / 10}
    )


def test_the_capture_s_cost_is_over_two_bare_runs(tmp_path: Path) -> None:
    store = _store(tmp_path)
    total = 1.5 + 0.5 + 12 + 6 + 10 + 10 + 5
    assert costs.capture_cost(store.context) == pytest.approx(total / (2 * 15))
    assert _summary(store)["capture_over_bare_forwards"] == pytest.approx(total / 30)


def test_seconds_are_walls_over_all_tries_and_the_workers_time_by_kind(tmp_path: Path) -> None:
    store = _store(tmp_path)
    found = _summary(store)["seconds"]
    assert set(found) == set(store.context.fingerprints)
    assert found["capture"] == pytest.approx({"wall": 22.5, "model": 30.0, "algebra": 3.0, "overhead": 12.0})
    assert found["solve"] == pytest.approx({"wall": 4.0, "model": 3.0, "algebra": 6.0, "overhead": 3.0})
    assert found["fisher"] == {"wall": 0.0, "model": 0.0, "algebra": 0.0, "overhead": 0.0}


def test_disk_adds_up_over_all_tries_and_memory_is_that_of_the_worker_that_held_most(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for unit, text, held in (("x/0", "four", 3_000_000_000), ("x/1", "sixsix", 2_000_000_000)):
        folder = store.manifest("hessian").open_unit(unit)
        (folder / "bytes").write_text(text)
        store.manifest("hessian").commit(unit, seconds={"resident": float(held)})
    facts = _summary(store)["facts"]
    assert facts["disk"].keys() == store.context.fingerprints.keys()
    assert facts["disk"]["hessian"] == 4 + 6 and facts["main_memory"] == {"hessian": 3_000_000_000}
    said = replace(NO_FACTS, disk={"a": 10**9, "b": 3 * 10**9}, main_memory={"a": 7 * 10**8, "b": 6 * 10**8}).space()
    assert said == "4.00 GB on disk, 3.00 of it for b; a worker held 0.70 GB of main memory at most, in a"
    assert NO_FACTS.space() == ""


class _Step:
    """What `write` reads of a plan's step."""

    def __init__(self, name: str, complete: bool, fingerprint: str) -> None:
        self.stage, self.complete, self.fingerprint = self, complete, fingerprint
        self.name = name


def _drawn(store: MadeStore) -> Context:
    """Pictures: full precision is red, quantized is blue; the second unit's are clips whose middle frame is so."""
    context = replace(store.context, fingerprints={**store.context.fingerprints, "reference": "r" * 64})
    for unit, rows in (("000", [0, 1]), ("001", [2, 3])):
        for stage, name, channel in (("evaluate", f"quantized/{unit}", 2), ("reference", f"draw/{unit}", 0)):
            shape = (2, 12, 12, 3) if unit == "000" else (2, 3, 12, 12, 3)
            drawn = np.zeros(shape, np.float32)
            (drawn if unit == "000" else drawn[:, 1])[..., channel] = 1
            manifest = context.manifest(stage)
            manifest.discard(name)
            folder = manifest.open_unit(name)
            tensors.write(folder, {"pictures": torch.from_numpy(drawn)})
            if stage == "evaluate":
                for file, values in _samples(rows).items():
                    tables.write(folder / file, values)
            manifest.commit(name)
    return context


def test_pictures_stand_in_columns_with_full_precision_above(tmp_path: Path) -> None:
    store = _store(tmp_path)
    pictures.draw(_drawn(store), tmp_path / "side.png", "title")
    found = pixels(tmp_path / "side.png")
    red = (found[..., 0] > 200) & (found[..., 1:].max(-1) < 60)
    blue = (found[..., 2] > 200) & (found[..., :2].max(-1) < 60)
    assert np.where(red.any(1))[0].max() < np.where(blue.any(1))[0].min(), "full precision above quantized"
    for colour in (red, blue):
        row = colour[np.where(colour.any(1))[0][len(np.where(colour.any(1))[0]) // 2]]
        assert int((np.diff(row.astype(int)) == 1).sum()) == 4, "four pictures"


def test_a_report_is_written_when_evaluate_is_done_and_stands_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path)
    context, run = _drawn(store), RunDir.at(store.context.run)
    manifest = context.manifest("assemble")
    sizes = manifest.read("model").value
    manifest.discard("model")
    (manifest.open_unit("model") / "model_index.json").write_text("{}")
    manifest.commit("model", value=sizes)
    monkeypatch.setattr(report, "card", lambda config, context, summary: f"psnr {summary.quality.psnr.mean}")
    path, fingerprint = run.report / "summary.json", context.fingerprints["evaluate"]

    def write(*, complete: bool) -> bool:
        steps: Any = [_Step("assemble", True, "a"), _Step("evaluate", complete, fingerprint)]
        return report.write(_config(store), run, steps, context)

    assert not write(complete=False) and not path.exists()
    assert write(complete=True)
    whole = report.summarize(_config(store), run, context)
    assert json.loads(path.read_text()) == json.loads(json.dumps(asdict(whole)))
    assert read_summary(run.report) == whole
    assert {p.name for p in run.report.iterdir()} == {
        "summary.json", "policy.png", "side_by_side.png", "sheet.png", "steps.png", "report.html", "pictures",
    }  # fmt: skip
    assert run.model.resolve() == run.published_folder(context.fingerprints["assemble"], fingerprint).resolve()
    assert (run.model / "README.md").read_text() == "psnr 35.0"
    for name in ("policy.png", "sheet.png"):
        assert (run.model / name).read_bytes() == (run.report / name).read_bytes()
    assert (run.model / "model_index.json").read_text() == "{}"
    stamp = path.stat().st_mtime_ns
    assert write(complete=True) and path.stat().st_mtime_ns == stamp
    for stale in (json.dumps({"fingerprint": "another"}), "{}", "[1]", "not json", ""):
        path.write_text(stale)
        assert write(complete=True)
        assert json.loads(path.read_text())["title"] == whole.title
    for damaged in ("model/README.md", "model/model_index.json", "model/policy.png", "report/steps.png"):
        right = (run.path / damaged).read_bytes()
        (run.path / damaged).write_bytes(bytes([right[0] ^ 1]) + right[1:])
        assert finished.damage(run, context.fingerprints).startswith(str((run.path / damaged).resolve()))
        assert write(complete=True) and (run.path / damaged).read_bytes() == right
        assert finished.damage(run, context.fingerprints) == "" and finished.verify(run) == (1, [])
    run.model.unlink()
    assert "model is no link to" in finished.damage(run, context.fingerprints)
    assert write(complete=True) and (run.model / "README.md").read_text() == "psnr 35.0"


def test_what_is_published_are_the_bytes_that_were_computed(tmp_path: Path) -> None:
    """A report that would copy a damaged unit raises DamagedUnit, so that the unit is done again."""
    store = _store(tmp_path)
    context, run = _drawn(store), RunDir.at(store.context.run)
    manifest = context.manifest("assemble")
    (manifest.open_unit("other") / "weights").write_text("right")
    manifest.commit("other")
    (manifest.unit_folder("other") / "weights").write_text("wrong")
    steps: Any = [_Step("assemble", True, "a"), _Step("evaluate", True, context.fingerprints["evaluate"])]
    with pytest.raises(DamagedUnit, match="does not have the digest"):
        report.write(_config(store), run, steps, context)
