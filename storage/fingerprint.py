"""Digests of values, files and folders: how a stage, a policy or a model folder is identified.

A value is hashed through its one canonical JSON text. A value without such a text (a set, an object, a NaN) is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from adatsq_pipe.storage.files import read_json_object, write_text

Plain: TypeAlias = "bool | int | float | str | Sequence[Plain] | Mapping[str, Plain] | None"
"""A value that JSON can hold."""

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical(value: Plain) -> str:
    """The canonical JSON text of `value`: sorted keys, no spaces, shortest floats, ASCII.

    Raises TypeError, with the path to the field, for a value that has none.
    """
    return _JSON.encode(_plain(value, "value"))


def digest(value: Plain) -> str:
    """SHA-256 of the canonical text, as 64 hexadecimal characters."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def digest_of_json(value: Plain) -> str:
    """`digest` of a value that json.loads has just returned, without checking its types again.

    Raises ValueError for a NaN or infinity, the only JSON values that have no canonical text.
    """
    return hashlib.sha256(_JSON.encode(value).encode()).hexdigest()


def _plain(value: object, path: str) -> object:
    """`value` with its mappings as dicts and its sequences as lists. Raises TypeError for any other type."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{path} is {value}, which has no canonical text; use a finite number")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}; use text keys only")
        return {key: _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{path} is a {type(value).__name__}, which has no canonical text; use plain values")


def differences(old: Plain, new: Plain, path: str = "") -> list[tuple[str, Plain, Plain]]:
    """The fields in which two plain values differ, as (dotted name, old, new). An absent field reads None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        fields = []
        for key in sorted({*old, *new}):
            fields += differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return fields
    return [] if canonical(old) == canonical(new) else [(path, old, new)]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal characters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[Path]:
    """Every file below `folder` in a fixed order, without folders and hidden names."""
    return [folder / name for name in list_names(folder)]


def list_names(folder: Path) -> list[str]:
    """The files of `list_files` by their names relative to `folder`. Much faster: it makes no Path objects."""
    result, start = list[str](), len(str(folder)) + 1
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = f"{root}/"[start:]
        result += [prefix + name for name in sorted(names) if not name.startswith(".")]
    return result


def folder_digest(folder: Path, cache: Path) -> str:
    """Digest of a folder: the relative names and the contents of its files.

    `cache` (a JSON file) holds each file's size, mtime and digest, so that a large model is hashed once.
    """
    try:
        cached = read_json_object(cache)
    except (OSError, ValueError):
        cached = {}
    entries: dict[str, tuple[int, int, str]] = {}
    for path in list_files(folder):
        stat = path.stat()
        size, mtime, old = stat.st_size, stat.st_mtime_ns, cached.get(str(path))
        entries[str(path)] = (size, mtime, old[2] if old and old[:2] == [size, mtime] else file_digest(path))
    if {name: list(entry) for name, entry in entries.items()} != cached:
        write_text(cache, json.dumps(entries, indent=1))
    return digest({str(Path(name).relative_to(folder)): sha for name, (_, _, sha) in entries.items()})
