"""Prompts from files: the same configuration whatever the file's kind, and a line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from adatsq_pipe.pipeline import captions, config, plan, prompts
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
        ("p.jsonl", b"[1]", ("line 1", "no JSON object")),
        ("p.jsonl", b"[" * 100_000, ("p.jsonl", "nested too deeply")),
        ("p.jsonl", b'{"prompt": "\\ud83d"}', ("line 1", "half a character")),
        ("p.json", b'{"prompt": "a"}\n{"prompt": "b"}', ("p.json", "ends with .jsonl")),
        ("p.json", b'{"captions": ["a"]}', ("p.json", "holds no list")),
        ("p.json", b'["a", {"text": "b"}]', ("entry 2", "no 'prompt'; it has text")),
        ("p.json", b"[]", ("p.json", "holds no prompts")),
        ("p.csv", b"text,seed\na,1\n", ("no column 'prompt'", "they are 'text', 'seed'")),
        ("p.csv", b"prompt\na, b\n", ("line 2 has 2 values and the first line 1", "in quotes")),
        ("p.csv", b"seed,prompt\n4\n", ("line 2", "no 'prompt'")),
        ("p.csv", b'prompt\n"a\n', ("p.csv", "line")),
        ("p.csv", b"prompt,seed\na,1.5\n", ("line 2", "seed is '1.5'")),
        ("p.csv", b"", ("p.csv", "holds no prompts")),
        ("p.xlsx", b"PK", ("the ending '.xlsx'", "there are .txt, .jsonl, .ndjson, .json, .csv, .tsv, .parquet")),
        ("p.txt.gz", b"a", ("the ending '.gz'",)),
        ("prompts", b"a", ("a name without an ending", ".txt")),
        ("p.txt", "caf\xe9".encode("latin-1"), ("p.txt", "not text in UTF-8 (byte 3)")),
        ("p.txt", b"PAR1\0\0\1", ("p.txt", "ends with .parquet")),
        ("p.parquet", b"not a table", ("p.parquet", "not readable as Parquet")),
        ("p.txt", b"\xff\xfe\x00", ("p.txt", "not text")),
        ("", None, ("is a folder; give one file",)),
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
    assert "\n" not in str(error.value)


def test_a_parquet_without_the_column_and_two_sources(tmp_path: Path) -> None:
    tables.write(tmp_path / "p.parquet", [{"text": "a"}])
    with pytest.raises(ConfigError, match="no column 'prompt'; it has text"):
        _load(f"evaluate.prompts_file={tmp_path / 'p.parquet'}")
    with pytest.raises(ConfigError, match=r"both set; add --set data.prompts=\[\]"):
        _load(f"data.prompts_file={_written(tmp_path)['text']}", "data.prompts=['a']")


def test_a_count_takes_the_first_rows_of_a_file_with_all_that_comes_with_them(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [("a red circle", "one", 5), ("a blue square", "two", 6), ("a white cross", "one", 7)]
    lines = [json.dumps({"prompt": prompt, "kind": kind, "seed": seed}) for prompt, kind, seed in rows]
    file.write_text("\n".join(lines))

    def captions(*sets: str) -> EvaluateSettings:
        return _load(f"evaluate.prompts_file={file}", *sets).settings[EvaluateSettings]

    assert len(captions().prompts) == 3
    first = captions("evaluate.count=2")
    assert first.prompts == ("a red circle", "a blue square") and first.kinds == ("one", "two")
    assert [row["seed"] for row in first.inputs] == [5, 6]
    assert len(captions("evaluate.count=9").prompts) == 3


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


CAPTIONS = ["Ein Mädchen, 花, 🌸", 'two "dogs"']


def _as(ending: str) -> str:
    """CAPTIONS as a text of that format."""
    quoted = [f'"{caption.replace(chr(34), chr(34) * 2)}"' for caption in CAPTIONS]
    return {
        "txt": "\n".join(CAPTIONS) + "\n",
        "jsonl": "".join(json.dumps({"prompt": c}, ensure_ascii=False) + "\n" for c in CAPTIONS),
        "ndjson": "".join(json.dumps(c) + "\n" for c in CAPTIONS),
        "json": json.dumps([{"prompt": c} for c in CAPTIONS], ensure_ascii=False, indent=1),
        "csv": "id,prompt\n" + "".join(f"{i},{text}\n" for i, text in enumerate(quoted)),
        "tsv": "id\tprompt\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(quoted)),
    }[ending]


@pytest.mark.parametrize("ending", ["txt", "jsonl", "ndjson", "json", "csv", "tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_captions_are_the_same_in_every_format_encoding_and_line_end(
    ending: str, encoding: str, end: str, tmp_path: Path
) -> None:
    file = tmp_path / f"P.{ending.upper() if end == chr(10) else ending}"
    file.write_bytes(_as(ending).replace("\n", end).encode(encoding))
    found = prompts.read(file)
    assert found.prompts == CAPTIONS and found.inputs == [] and not found.images


def test_other_characters_than_line_ends_break_no_caption(tmp_path: Path) -> None:
    caption = "a\u2028b\x85c\x0bd\x0ce\u2029f"
    (tmp_path / "p.txt").write_text(caption, "utf-8")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": caption}, ensure_ascii=False), "utf-8")
    assert prompts.read(tmp_path / "p.txt").prompts == [caption] == prompts.read(tmp_path / "p.jsonl").prompts


def test_a_caption_of_a_table_may_have_lines_and_other_columns(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    rows = 'prompt;images;call;seed\n"a\nb; c";"{""image"": ""a.png""}";"{""strength"": 0.5}";7\nd;;;\n;;;\n'
    (tmp_path / "p.csv").write_text(rows)
    found = prompts.read(tmp_path / "p.csv")
    (digest,) = found.images
    assert found.prompts == ["a\nb; c", "d"]
    assert found.inputs == [{"call": {"strength": 0.5}, "images": {"image": digest}, "seed": 7}, {}]


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "p.txt").write_text("a")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ValueError, match=r"p\.txt cannot be read: Permission denied"):
        prompts.read(tmp_path / "p.txt")


def test_the_first_three_captions_are_shown_with_their_number_and_file(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\na\nb\nc\nd\n")
    made = _load(f"data.prompts_file={tmp_path / 'p.csv'}", f"evaluate.prompts=['{'x' * 80}']")
    assert captions.shown(made.settings[DataSettings]) == (
        f"data: 4 captions from {tmp_path / 'p.csv'}: 'a', 'b', 'c', ..."
    )
    assert captions.shown(made.settings[EvaluateSettings]) == (f"evaluate: 1 caption: '{'x' * 70}...'")
