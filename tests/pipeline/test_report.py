"""The report of a made-up run: its title, its means, its pictures, and when it is written again."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adatsq_pipe.pipeline import finished, pictures, report
from adatsq_pipe.pipeline.summary import Mean, read_summary
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.rundir import RunDir
from tests.support import made_run as made
from tests.support.drawn import pixels


def test_a_picked_point_of_the_front_is_what_the_summary_speaks_of(tmp_path: Path) -> None:
    store = made.store(tmp_path, recipe={"method": "endpoint"}, assemble={"mean_bits": 3.75})
    manifest = store.manifest("search")
    front = {"mean_bits": 4.25, "mac_weighted_bits": 4.1, "rollout_error": 0.003, "front": 2, "policy": store.bits}
    own = [b for row in store.bits for b in row if b < 16]
    rows = [
        {"mean_bits": mean, "mac_weighted_bits": mean + 0.5, "predicted_error": 0.01, "rollout_error": error, "bits": b}
        for mean, error, b in ((sum(own) / 6, 0.003, own), (3.5, None, [3, 4, 3, 4, 3, 4]))
    ]
    manifest.discard("front")
    made.commit(store.context, "search", "front", value=front, files={"front.parquet": rows})
    found = made.summary(store)
    assert found["title"] == "tiny-flux: 4.38-bit weights, 3.50-bit activations"
    bits = {name: found["bits"][name] for name in ("activations_mean", "activations_mac_weighted", "budget")}
    assert bits == {"activations_mean": 3.5, "activations_mac_weighted": 4.0, "budget": 3.75}
    assert (found["search"]["front"], found["search"]["rollout_error"]) == (2, None)


def test_the_title_calls_a_snapshot_of_the_hubs_cache_by_its_repository(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    config = replace(made.config(store), model=tmp_path / "models--Wan-AI--Wan2.1-T2V" / "snapshots" / "0ef5fff789")
    found = report.summarize(config, RunDir.at(store.context.run), store.context)
    assert found.title.startswith("Wan-AI/Wan2.1-T2V: ")


def test_bits_that_were_not_counted_are_not_guessed(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    manifest = store.manifest("evaluate")
    manifest.withdraw("quantized/001")
    made.commit(store.context, "evaluate", "quantized/001", files=made.samples([2, 3]))
    assert made.summary(store)["bits"]["activations_run"] is None


@pytest.mark.parametrize(("run", "otherwise"), [(4.2, False), (4.204, False), (4.3, True), (8.0, True), (None, False)])
def test_a_run_at_other_bits_than_the_policy_has_is_noticed(run: float | None, otherwise: bool, tmp_path: Path) -> None:
    bits = report.summarize(
        made.config(store := made.store(tmp_path)), RunDir.at(store.context.run), store.context
    ).bits
    assert replace(bits, activations_run=run).ran_otherwise is otherwise


def test_quality_is_the_mean_its_standard_error_and_the_worst_of_all_pictures(tmp_path: Path) -> None:
    quality = made.summary(made.store(tmp_path))["quality"]
    assert (quality["captions"], quality["seeds"], quality["asked_for"]) == (2, 2, None)
    ssim = [0.9, 0.8, 0.7, 0.6]
    assert quality["psnr"] == pytest.approx(
        {"mean": 35.0, "standard_error": made.error_of_mean(made.PSNR), "worst": 30.0}, rel=1e-12
    )
    assert quality["latent_psnr"] == pytest.approx(
        {"mean": 30.0, "standard_error": made.error_of_mean(made.PSNR), "worst": 25.0}, rel=1e-12
    )
    assert quality["latent_error"] == pytest.approx(
        {"mean": 0.03, "standard_error": made.error_of_mean(made.ERRORS), "worst": 0.05}, rel=1e-12
    )
    assert quality["ssim"] == pytest.approx(
        {"mean": 0.75, "standard_error": made.error_of_mean(ssim), "worst": 0.6}, rel=1e-9
    )
    per_step = quality["per_step"]
    assert per_step["latent_relative_error"] == pytest.approx([0.0, 0.2, 0.3])
    assert per_step["latent_psnr_db"] == pytest.approx([1.5, 11.5, 21.5])


def test_one_picture_has_no_standard_error() -> None:
    assert report._mean([[{"psnr": 30.0}]], "psnr") == Mean(mean=30.0, standard_error=0.0, worst=30.0)


def test_pictures_stand_in_columns_with_full_precision_above(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    pictures.draw(made.drawn(store), tmp_path / "side.png", "title")
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
    store = made.store(tmp_path)
    context, run = made.drawn(store), RunDir.at(store.context.run)
    manifest = context.manifest("assemble")
    sizes = manifest.read("model").value
    manifest.discard("model")
    (manifest.open_unit("model") / "model_index.json").write_text("{}")
    manifest.commit("model", value=sizes)
    monkeypatch.setattr(report, "card", lambda config, context, summary: f"psnr {summary.quality.psnr.mean}")
    path, fingerprint = run.report / "summary.json", context.fingerprints["evaluate"]

    def write(*, complete: bool) -> bool:
        steps: Any = [made.Step("assemble", True, "a"), made.Step("evaluate", complete, fingerprint)]
        return report.write(made.config(store), run, steps, context)

    assert not write(complete=False) and not path.exists()
    assert write(complete=True)
    whole = report.summarize(made.config(store), run, context)
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
    store = made.store(tmp_path)
    context, run = made.drawn(store), RunDir.at(store.context.run)
    manifest = context.manifest("assemble")
    (manifest.open_unit("other") / "weights").write_text("right")
    manifest.commit("other")
    (manifest.unit_folder("other") / "weights").write_text("wrong")
    steps: Any = [made.Step("assemble", True, "a"), made.Step("evaluate", True, context.fingerprints["evaluate"])]
    with pytest.raises(DamagedUnit, match="does not have the digest"):
        report.write(made.config(store), run, steps, context)
