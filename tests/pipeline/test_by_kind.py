"""Kinds of captions: from files and settings to results, each recomputed here from the numbers alone."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adatsq_pipe.pipeline import captions, config, plan, report
from adatsq_pipe.pipeline.by_kind import by_kind, grouped, metrics_of
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.kind_quality import line, metric_line
from adatsq_pipe.pipeline.page import content, images, render
from adatsq_pipe.pipeline.samples import samples
from adatsq_pipe.pipeline.summary import read_summary
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.storage import tables
from adatsq_pipe.storage.rundir import RunDir
from tests.pipeline.test_prompts import _load
from tests.pipeline.test_report_texts import written
from tests.support import made_run as made

ROWS = [
    {"prompt": "a", "kind": "hands"},
    {"prompt": "b", "kind": None},
    {"prompt": "a", "kind": "\u8ba1 \u6570"},
    {"prompt": "d", "kind": "hands"},
]
KINDS = ("hands", "", "\u8ba1 \u6570", "hands")


def _files(folder: Path) -> list[Path]:
    """The same rows in every format that has columns."""
    texts = {
        "k.json": json.dumps(ROWS),
        "k.jsonl": "\n".join(map(json.dumps, ROWS)),
        "k.csv": "kind,prompt\n" + "".join(f"{row['kind'] or ''},{row['prompt']}\n" for row in ROWS),
        "k.tsv": "prompt\tkind\n" + "".join(f"{row['prompt']}\t {row['kind'] or ''} \n" for row in ROWS),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    tables.write(folder / "k.parquet", ROWS)
    return [*(folder / name for name in texts), folder / "k.parquet"]


def test_a_column_kind_is_read_from_every_format_and_no_stage_depends_on_it(tmp_path: Path) -> None:
    prompts = json.dumps([row["prompt"] for row in ROWS])
    plain = _load(f"evaluate.prompts={prompts}", f"data.prompts={prompts}")
    before, _ = plan.plan(plain, RunDir(tmp_path / "run"))
    for file in _files(tmp_path):
        kinds = _load(f"evaluate.prompts_file={file}", f"data.prompts_file={file}")
        assert kinds.settings[EvaluateSettings].kinds == kinds.settings[DataSettings].kinds == KINDS, file
        steps, _ = plan.plan(kinds, RunDir(tmp_path / "run"))
        assert [step.fingerprint for step in steps] == [step.fingerprint for step in before]
    named = _load(f"evaluate.prompts={prompts}", f"evaluate.kinds={json.dumps(KINDS, ensure_ascii=False)}")
    assert named.settings[EvaluateSettings].kinds == KINDS
    assert "4 captions (hands 2, no kind 1, \u8ba1 \u6570 1): 'a'" in captions.shown(named.settings[EvaluateSettings])


def test_rows_without_a_kind_have_none(tmp_path: Path) -> None:
    file = tmp_path / "k.csv"
    file.write_text("prompt,kind\na,\nb,  \n")
    assert _load(f"evaluate.prompts_file={file}").settings[EvaluateSettings].kinds == ()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (3, "3"),
        ("  two\n words ", "two words"),
        ("cafe\u0301", "caf\u00e9"),
        ("x" * 60, "x" * 60),
        ("", ""),
        (None, ""),
    ],
)
def test_a_kind_is_a_name_on_one_line(kind: object, name: str, tmp_path: Path) -> None:
    file = tmp_path / "k.jsonl"
    file.write_text(json.dumps({"prompt": "a", "kind": kind}) + '\n{"prompt": "b", "kind": "other"}')
    assert _load(f"evaluate.prompts_file={file}").settings[EvaluateSettings].kinds == (name, "other")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("1.5", "kind is 1.5, no text; write a word or two"),
        ("true", "kind is True, no text"),
        ('["a"]', r"kind is \['a'\], no text"),
        ('"' + "k" * 61 + '"', r"kind is 'k{59}\.\.\., 61 characters; write at most 60"),
        ('"a\\u0007b"', r"kind is 'a\\x07b', which holds a character that cannot be shown"),
        ('"\\ud83d"', "cannot be shown"),
        ("NaN", "kind is nan, no text"),
    ],
)
def test_what_is_no_kind_is_refused_in_one_line(kind: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "k.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b", "kind": ' + kind + "}")
    with pytest.raises(ConfigError, match=words) as error:
        _load(f"evaluate.prompts_file={file}")
    assert "\n" not in str(error.value) and f"evaluate.prompts_file: {file}, line 2: kind is" in str(error.value)


def test_kinds_that_are_not_one_for_each_caption_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.kinds has 1 entries and evaluate\.prompts has 2; give each"):
        _load("evaluate.prompts=['a', 'b']", "evaluate.kinds=['x']")
    with pytest.raises(ConfigError, match=r"evaluate\.kinds and evaluate\.prompts_file are both set"):
        _load(f"evaluate.prompts_file={tmp_path / 'k.txt'}", "evaluate.kinds=['x']")


def test_the_stress_captions_are_held_out_ones_of_six_kinds_in_turn() -> None:
    every = captions.stress_captions()
    assert Counter(kind for kind, _ in every) == dict.fromkeys(
        ("text in the picture", "hands", "faces", "counting", "dense detail", "Chinese"), 5
    )
    assert len({prompt for _, prompt in every}) == 30
    asked = _load("evaluate.count=8").settings
    assert asked[EvaluateSettings].prompts == tuple(prompt for _, prompt in every[:8])
    kinds = Counter(asked[EvaluateSettings].kinds)
    assert list(kinds.values()) == [2, 2, 1, 1, 1, 1], "the first of each kind, then the second"
    assert not set(asked[DataSettings].prompts) & {prompt for _, prompt in every}
    counted = "text in the picture 2, hands 2, faces 1, counting 1, dense detail 1, Chinese 1"
    assert captions.origin(asked[EvaluateSettings], "") == f"8 of the built-in stress captions ({counted})"
    own = _load("evaluate.prompts=['a']").settings[EvaluateSettings]
    assert (own.kinds, captions.origin(own, "")) == ((), "1 from evaluate.prompts")
    inside = config.load(preset=None, file=None, sets=(), model=None, previous=None).settings[EvaluateSettings]
    assert inside.kinds == () and captions.origin(inside, "scenes") == "16 held-out ones of the built-in world"


def test_figures_of_a_kind_are_means_and_intervals_over_its_captions() -> None:
    """Three captions, two seeds; the second caption is of another kind. A caption counts once, whatever its seeds."""
    errors, psnr = [1e-2, 1e-3, 1e-4, 1e-2, 1e-3, 1e-1], [20.0, 30.0, 40.0, 22.0, 33.0, 44.0]
    right = [[True, False], [True], [True, True], [False, False], [True], [True, True]]
    rows: list[dict[str, Any]] = [
        {"kind": ("x", "", "x")[i % 3], "latent_error": errors[i], "psnr": psnr[i], "ssim": psnr[i] / 100,
         "right": right[i], "reference_right": [True] * len(right[i])}
        for i in range(6)
    ]  # fmt: skip
    first, second = by_kind(rows, 3)
    assert (first.kind, first.captions, first.pictures) == ("x", 2, 4)
    assert (second.kind, second.captions, second.pictures) == ("no kind", 1, 2)
    assert first.psnr.mean == pytest.approx((21 + 42) / 2)
    assert first.psnr.interval == pytest.approx(1.96 * statistics.stdev([21, 42]) / math.sqrt(2))
    assert first.latent_db.mean == pytest.approx((20 + 25) / 2)
    assert first.latent_db.interval == pytest.approx(1.96 * statistics.stdev([20, 25]) / math.sqrt(2))
    assert first.ssim.mean == pytest.approx(0.315)
    assert first.score is not None and first.score.mean == pytest.approx((0.25 + 1) / 2)
    assert first.score_difference is not None and first.score_difference.mean == pytest.approx((-0.75 + 0) / 2)
    assert second.psnr.interval is None and second.psnr.mean == pytest.approx(31.5)
    assert line([first, second]) == "PSNR by kind of caption, dB: x 31.5 +- 20.6, no kind 31.5"


def test_the_summary_has_the_kinds_and_is_written_again_when_they_change_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = made.store
    asked: dict[str, Any] = {"prompts": ["a", "b"], "seeds": 2, "kinds": ["k", "$x$ <b>"]}
    monkeypatch.setattr(made, "store", lambda folder, **more: original(folder, evaluate=asked, **more))
    run, said = written(tmp_path, monkeypatch)
    found = read_summary(run.report)
    assert said == [] and [(each.kind, each.captions, each.pictures) for each in found.quality.by_kind] == [
        ("k", 1, 2),
        ("$x$ <b>", 1, 2),
    ]
    assert [each.psnr.mean for each in found.quality.by_kind] == [(30 + 36) / 2, (33 + 41) / 2]
    text = (run.report / report.PAGE).read_text("utf-8")
    assert '<td data-value="$x$ &lt;b&gt;">' in text and "2 from evaluate.prompts (k 1, $x$ &lt;b&gt; 1)" in text
    store = original(tmp_path / "other", evaluate={**asked, "kinds": ["k", "k"]})
    context = made.replace(store.context, run=run.uri)
    steps: Any = [made.Step("assemble", True, "a"), made.Step("evaluate", True, context.fingerprints["evaluate"])]
    for _ in range(2):
        stamp = (run.report / report.FILE).stat().st_mtime_ns
        assert report.write(made.config(store), run, steps, context)
    assert [each.kind for each in read_summary(run.report).quality.by_kind] == ["k"]
    assert (run.report / report.FILE).stat().st_mtime_ns == stamp, "the second time it stands"


def test_the_worst_come_first_then_every_kind_whatever_it_is_called(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"prompts": ["a", "b"], "seeds": 2, "kinds": ["captions", "the worst"]}
    context = made.drawn(made.store(tmp_path, evaluate=asked))
    pairs = images.write_pictures(context, tmp_path)
    groups = [(g.title, [v.pair.row["latent_error"] for v in g.views]) for g in render._groups(pairs, tmp_path)]
    assert groups == [("the worst", [0.05, 0.04, 0.02]), ("captions", [0.01])]
    table = content._kinds(by_kind(samples(context), 2))
    assert [row[:3] for row in table.rows] == [["captions", 1, 2], ["the worst", 1, 2]]
    assert table.rows[0][3] == pytest.approx(10 * (math.log10(1 / 0.02) + math.log10(1 / 0.01)) / 2)


TEXTS = [
    "\u82b1\u304c\u54b2\u304f", "\U0001f338\U0001f338", "a/b\\c:d*e?f", "../../etc/passwd", "x" * 500, "a cat", "a cat",
    "", ".", "CON", "{{ 7 * 7 }}", "<b>$x$</b>", "%s", "\x00", "A Cat", "\u202eabc",
]  # fmt: skip


def test_files_of_pictures_have_safe_names_of_their_own_and_full_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same seed for all captions: the names differ by nothing else then."""
    picture = np.linspace(0, 1, 40 * 24 * 3).reshape(40, 24, 3)
    rows = [({"prompt": text, "seed": 5}, picture, picture * 0.5) for text in TEXTS]
    monkeypatch.setattr(images, "drawn", lambda context: iter(rows))
    pairs = images.write_pictures(None, tmp_path)  # type: ignore[arg-type]
    names = [name for pair in pairs for name in (pair.full, pair.quantized, pair.difference)]
    assert len({name.lower() for name in names}) == 3 * len(TEXTS)
    assert sorted(names) == sorted(f"pictures/{path.name}" for path in (tmp_path / "pictures").iterdir())
    for pair, text in zip(pairs, TEXTS, strict=True):
        assert pair.row["prompt"] == text and len(Path(pair.full).name) < 100
        assert set(Path(pair.full).name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-."), pair.full
        assert pair.full.endswith("-5-fp.png") and pair.quantized.endswith("-5-q.png")
        with Image.open(tmp_path / pair.full) as image:
            assert image.size == (24, 40) == (pair.width, pair.height)


@pytest.mark.filterwarnings("error")
def test_a_picture_of_no_numbers_is_written_too(tmp_path: Path) -> None:
    images.save([np.full((4, 4, 3), np.nan)], tmp_path / "nan.png")
    assert not np.asarray(Image.open(tmp_path / "nan.png")).any()


def test_metrics_are_means_over_captions_and_paired_where_both_models_have_one() -> None:
    """Two captions, two seeds; LPIPS is of pairs of pictures, a CLIP score of each picture."""
    rows: list[dict[str, Any]] = [
        {"lpips": [0.1, 0.2, 0.3, 0.8][i], "clip": [20.0, 30, 22, 36][i], "clip_full_precision": [21.0, 33, 22, 37][i]}
        for i in range(4)
    ]
    found = metrics_of(grouped(rows, 2))
    assert found["lpips"].quantized.mean == pytest.approx((0.2 + 0.5) / 2) and found["lpips"].difference is None
    own, full, gap = found["clip"].quantized, found["clip"].full_precision, found["clip"].difference
    assert full is not None and gap is not None
    assert (own.mean, full.mean, gap.mean) == ((21 + 33) / 2, (21.5 + 35) / 2, (-0.5 - 2) / 2)
    assert gap.interval == pytest.approx(1.96 * statistics.stdev([-0.5, -2]) / math.sqrt(2))
    assert metric_line("clip", found["clip"]) == (
        "CLIP score 27.00 +- 11.76, full precision 28.25 +- 13.23, paired difference -1.25 +- 1.47"
    )
    assert metric_line("lpips", found["lpips"]) == "LPIPS 0.350 +- 0.294 to full precision (0: alike)"
    assert metrics_of(grouped([{"psnr": 1.0}], 1)) == {}


def test_metrics_are_a_stage_of_their_own_that_depends_on_the_clip_model_s_bytes(tmp_path: Path) -> None:
    """Asking for one leaves the other stages as they are, and moving the model's folder changes nothing."""
    run, clip = RunDir(tmp_path / "run"), tmp_path / "clip"
    run.create()
    clip.mkdir()
    (clip / "model.safetensors").write_text("a")
    (clip / "notes.md").write_text("a")

    def prints(*sets: str) -> dict[str, str]:
        return {step.stage.name: step.fingerprint for step in plan.plan(_load(*sets), run)[0]}

    asked = ("evaluate.metrics=['clip']", f"evaluate.clip={clip}")
    plain, before = prints(), prints(*asked)
    scored = before.pop("perceptual")
    assert before == plain and "perceptual" not in plain
    (clip / "notes.md").write_text("b")
    clip.rename(tmp_path / "moved")
    assert prints(asked[0], f"evaluate.clip={tmp_path / 'moved'}")["perceptual"] == scored
    (tmp_path / "moved" / "model.safetensors").write_text("b")
    assert prints(asked[0], f"evaluate.clip={tmp_path / 'moved'}")["perceptual"] != scored
    assert prints("evaluate.metrics=['lpips']")["perceptual"] not in ("", scored)
    with pytest.raises(ConfigError, match=r"evaluate\.clip: there is no folder '.*clip'"):
        prints(*asked)
    run.record_identity("perceptual", scored, {"reads": {"metrics": ["clip"], "clip": "a digest"}})
    step = plan.plan(_load(*asked), run)[0][-1]
    reads: Any = step.identity["reads"]
    assert reads["clip"] == "a digest", "what is done can be read when the model's folder is gone"


def test_the_report_shows_the_metrics_once_they_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = made.store
    asked: dict[str, Any] = {"prompts": ["a", "b"], "seeds": 2, "metrics": ["lpips"]}
    monkeypatch.setattr(made, "store", lambda folder, **more: original(folder, evaluate=asked, **more))

    def scored(folder: Path, *, seed: int = 0) -> Any:
        store = original(folder, evaluate=asked)
        store.context.fingerprints["perceptual"] = "9" * 64  # type: ignore[index]
        for unit, values in (("000", (0.1, 0.4)), ("001", (0.3, 0.2))):
            place = {"scores.parquet": [{"lpips": value} for value in values]}
            made.commit(store.context, "perceptual", f"scores/{unit}", files=place)
        return store

    monkeypatch.setattr(made, "store", scored)
    run, said = written(tmp_path, monkeypatch)
    found = read_summary(run.report)
    assert said == [] and found.additions and found.quality.metrics["lpips"].quantized.mean == pytest.approx(0.25)
    text = (run.report / report.PAGE).read_text("utf-8")
    assert "<dt>LPIPS</dt><dd>0.250 <small>&plusmn; 0.098</small>" in text, "1.96 stdev(0.2, 0.3) / sqrt(2)"
    assert '<button type="button" data-sort="6">LPIPS</button>' in text
