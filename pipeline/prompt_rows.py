"""The rows of a prompts file, by its format, which the ending of its name says, in whatever case.

Texts are UTF-8 or UTF-16, with or without a byte-order mark. Lines end where the formats say: at a line feed, a
carriage return, or both, and at no other character that Unicode counts as a line's end.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from adatsq_pipe.storage.errors import StorageError

COLUMN = "prompt"
MORE = ("images", "call", "seed", "kind")

Row: TypeAlias = tuple[str, dict[str, Any]]
"""Where it stands, for a message; and its values by column, `prompt` among them."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte-order marks and what they say; that of UTF-32 begins with that of UTF-16."""
_LINE_END = re.compile(r"\r\n|\n|\r")
DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
"""What may stand between the values of a table: the first under which the header has the column is it."""


def rows(path: Path) -> list[Row]:
    """The rows of the file in order. ValueError, in one line, with the file and what it lacks."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give one file")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    ending = path.suffix.lower()
    if ending not in FORMATS:
        what = f"the ending {path.suffix!r}" if path.suffix else "a name without an ending"
        raise ValueError(f"{path}: no format of prompts has {what}; there are {', '.join(FORMATS)}")
    try:
        return FORMATS[ending](path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def text_of(path: Path) -> str:
    """The text of the file. ValueError if it is none."""
    raw = path.read_bytes()
    mark, encoding = next(((mark, name) for mark, name in _MARKS if raw.startswith(mark)), (b"", _guessed(raw)))
    try:
        text = raw[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {len(mark) + error.start}); save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path} is not text; a Parquet file's name ends with .parquet")
    return text


def _guessed(raw: bytes) -> str:
    """The encoding of a text without a byte-order mark: in UTF-16 every other byte of plain letters is zero."""
    head = raw[:1000]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if len(raw) % 2 or max(even, odd) < len(head) / 4 or min(even, odd):
        return "utf-8"
    return "utf-16-be" if even else "utf-16-le"


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, line) of the lines that are not empty, without space around them."""
    lines = _LINE_END.split(text_of(path))
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _text(path: Path) -> list[Row]:
    return [(f"{path}, line {number}", {COLUMN: line}) for number, line in _lines(path)]


def _json_lines(path: Path) -> list[Row]:
    found = []
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError:
            raise ValueError(f'{where} is no JSON object; write {{"{COLUMN}": "..."}}') from None
        found.append((where, _object(where, value)))
    return found


def _json(path: Path) -> list[Row]:
    try:
        value = json.loads(text_of(path))
    except json.JSONDecodeError as error:
        again = "; a file of one object a line ends with .jsonl" if error.msg == "Extra data" else ""
        raise ValueError(f"{path} is not JSON: {error}{again}") from None
    if isinstance(value, dict) and set(value) == {"prompts"}:
        value = value["prompts"]
    if not isinstance(value, list):
        raise ValueError(f'{path} holds no list; write ["...", "..."], or objects [{{"{COLUMN}": "..."}}, ...]')
    return [(where := f"{path}, entry {number}", _object(where, item)) for number, item in enumerate(value, 1)]


def _object(where: str, value: object) -> dict[str, Any]:
    """A row of JSON: an object with a prompt, or the prompt alone."""
    if isinstance(value, str):
        return {COLUMN: value}
    if not isinstance(value, dict):
        raise ValueError(f'{where} is no JSON object; write {{"{COLUMN}": "..."}}')
    if COLUMN not in value:
        raise ValueError(f"{where} has no {COLUMN!r}; it has {', '.join(map(str, sorted(value))) or 'nothing'}")
    return value


def _table(path: Path) -> list[Row]:
    """Rows of a table in text, values in quotes where they hold a delimiter, a quote or a line's end (RFC 4180)."""
    text, options = text_of(path).lstrip("\r\n "), DELIMITERS[path.suffix.lower()]
    if not text:
        return []
    headers = {mark: next(csv.reader(io.StringIO(text, newline=""), delimiter=mark), []) for mark in options}
    delimiter = next((mark for mark, names in headers.items() if COLUMN in map(str.strip, names)), "")
    if not delimiter:
        names = ", ".join(map(repr, headers[options[0]]))
        raise ValueError(f"{path} has no column {COLUMN!r}: its first line names the columns, and they are {names}")
    (_, header), *rest = _read(path, text, delimiter)
    found = []
    for number, values in rest:
        where = f"{path}, line {number}"
        if len(values) > len(header):
            raise ValueError(
                f"{where} has {len(values)} values and the first line {len(header)}; put a caption that holds the "
                'delimiter in quotes: "a, b"'
            )
        row = {name: value for name, value in zip(header, values, strict=False) if name == COLUMN or value}
        found.append((where, {**row, "seed": _whole(row["seed"])} if "seed" in row else row))
    if wrong := [where for where, row in found if COLUMN not in row]:
        raise ValueError(f"{wrong[0]} has no {COLUMN!r}; it has fewer values than the first line")
    return found


def _read(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """(line on which it ends, values) of every row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        read = [(reader.line_num, [value.strip() for value in values]) for values in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    return [(number, values) for number, values in read if any(values)]


def _whole(text: str) -> int | str:
    """The whole number that a text writes, or the text."""
    return int(text) if re.fullmatch(r"[0-9]{1,30}", text) else text


def _parquet(path: Path) -> list[Row]:
    from adatsq_pipe.storage import tables  # imports pyarrow, which only Parquet files need

    try:
        read = tables.columns(path, (COLUMN,), MORE)
    except StorageError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return [(f"{path}, row {number}", row) for number, row in enumerate(read, 1)]


FORMATS: dict[str, Callable[[Path], list[Row]]] = {
    ".txt": _text,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
"""How a file is read, by the ending of its name."""
