"""Prompts from a file: text with one to a line, or JSONL or Parquet with a column `prompt`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adatsq_pipe.storage.errors import StorageError

COLUMN = "prompt"


def read(path: Path) -> list[str]:
    """The prompts of the file in order, empty lines left out. ValueError with the file and what it lacks."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    if path.suffix == ".parquet":
        found = [str(value) for value in _column(path)]
    elif path.suffix == ".jsonl":
        found = [_prompt(path, number, line) for number, line in _lines(path)]
    else:
        found = [line for _, line in _lines(path)]
    if not found:
        raise ValueError(f"{path} holds no prompts; write one to a line")
    return found


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text; end a Parquet file's name with .parquet") from None
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _prompt(path: Path, number: int, line: str) -> str:
    try:
        row: Any = json.loads(line)
        return str(row[COLUMN])
    except (ValueError, TypeError):
        raise ValueError(f'{path}, line {number} is no JSON object; write {{"{COLUMN}": "..."}}') from None
    except KeyError:
        raise ValueError(f"{path}, line {number} has no {COLUMN!r}; it has {', '.join(sorted(row))}") from None


def _column(path: Path) -> list[Any]:
    from adatsq_pipe.storage import tables

    try:
        return tables.column(path, COLUMN)
    except StorageError as error:
        raise ValueError(str(error)) from None
