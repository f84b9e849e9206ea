"""Prompts from files: the same configuration whatever the file's kind, and a line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from adatsq_pipe.pipeline import config, plan, prompts
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.base.stage import all_stages
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.storage import tables
from adatsq_pipe.storage.rundir import RunDir

PROMPTS = ["a lighthouse at dawn", 'two "dogs", on a beach']
OUTSIDE = ("model.world=''",)


def _load(*sets: str, previous: dict[str, object] | None = None) -> config.RunConfig:
    return config.load(preset=None, file=None, sets=(*OUTSIDE, *sets), model=None, previous=previous)


def _written(folder: Path) -> dict[str, Path]:
    text, lines, parquet = folder / "p.txt", folder / "p.jsonl", folder / "p.parquet"
    text.write_text("\n".join(["", *PROMPTS, ""]))
    lines.write_text("\n".join(json.dumps({"id": i, "prompt": p}) for i, p in enumerate(PROMPTS)))
    tables.write(parquet, [{"id": i, "prompt": p} for i, p in enumerate(PROMPTS)])
    return {"text": text, "jsonl": lines, "parquet": parquet}


def test_every_kind_of_file_gives_the_same_run(tmp_path: Path) -> None:
    given = _load(f"data.prompts={json.dumps(PROMPTS)}", f"evaluate.prompts={json.dumps(PROMPTS[:1])}")
    for file in _written(tmp_path).values():
        made = _load(f"data.prompts_file={file}", f"evaluate.prompts={json.dumps(PROMPTS[:1])}")
        for stage in all_stages().values():
            assert stage.reads(made.settings, "m") == stage.reads(given.settings, "m")


def test_the_file_is_kept_by_its_place_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _written(tmp_path)["text"]
    monkeypatch.chdir(tmp_path)
    first = _load("data.prompts_file=p.txt")
    assert first.request["tables"]["data"]["prompts_file"] == str(file)
    monkeypatch.chdir("/")
    file.write_text("something else")
    again = _load(previous=dict(first.request))
    assert again.settings[DataSettings].prompts == ("something else",)
    before, after = (plan.context_of(made, RunDir(tmp_path)) for made in (first, again))
    reads = all_stages()["capture"].reads
    assert reads(before.settings, "m") != reads(after.settings, "m")


@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        ("none.txt", None, ("none.txt", "no such file")),
        ("p.txt", b"\n\n", ("p.txt", "holds no prompts")),
        ("p.jsonl", b'{"text": "a"}', ("line 1", "no 'prompt'", "it has text")),
        ("p.jsonl", b"a plain line", ("line 1", "no JSON object")),
        ("p.parquet", b"not a table", ("p.parquet", "not readable as Parquet")),
        ("p.txt", b"\xff\xfe\x00", ("p.txt", "not text")),
    ],
)
def test_the_error_names_the_fault_in_a_prompts_file(
    name: str, contents: bytes | None, words: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / name
    if contents is not None:
        file.write_bytes(contents)
    with pytest.raises(ConfigError) as error:
        _load(f"data.prompts_file={file}")
    assert all(word in str(error.value) for word in ("data.prompts_file", *words)), str(error.value)


def test_a_parquet_without_the_column_and_two_sources(tmp_path: Path) -> None:
    tables.write(tmp_path / "p.parquet", [{"text": "a"}])
    with pytest.raises(ConfigError, match="no column 'prompt'; it has text"):
        _load(f"evaluate.prompts_file={tmp_path / 'p.parquet'}")
    with pytest.raises(ConfigError, match=r"both set; add --set data.prompts=\[\]"):
        _load(f"data.prompts_file={_written(tmp_path)['text']}", "data.prompts=['a']")


def test_prompts_with_pictures_run_one_at_a_time_by_default(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a red circle", "images": {"image": "a.png"}}\n' * 2)

    def batches(*sets: str) -> tuple[int, int]:
        loaded = config.load(
            preset=None, file=None, sets=(f"data.prompts_file={file}", *sets), model=None, previous=None
        )
        return loaded.settings[DataSettings].batch, loaded.settings[EvaluateSettings].batch

    assert batches() == (1, 6) and batches("data.batch=2") == (2, 6)


def test_a_prompt_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": {"edit": "x"}}')
    with pytest.raises(ConfigError, match="line 1: its prompt is no text"):
        config.load(preset=None, file=None, sets=(f"data.prompts_file={file}",), model=None, previous=None)


def test_a_row_may_come_with_more_than_its_prompt_while_others_do_not(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "a cat", "seed": 3}, {"prompt": "a dog"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = prompts.read(tmp_path / "p.jsonl")
    assert made.prompts == ["a cat", "a dog"] and made.inputs == [{"seed": 3}, {}]


@pytest.mark.parametrize("seed", [-1, 1.5, True, "3"])
def test_a_seed_is_a_whole_number_from_zero(seed: object, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a cat", "seed": seed}))
    with pytest.raises(ValueError, match="line 1: seed is"):
        prompts.read(tmp_path / "p.jsonl")
