"""Digests of values and files: what "the same" means for a stage, a policy, a model folder.

A value is hashed through one canonical text; what has no canonical text (a set, an object, a NaN) is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Plain: TypeAlias = "bool | int | float | str | Sequence[Plain] | Mapping[str, Plain] | None"


def canonical(value: Plain) -> str:
    """The one text of `value`: sorted keys, no spaces, shortest floats. Raises TypeError for what has none."""
    return json.dumps(_checked(value, "value"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(value: Plain) -> str:
    """SHA-256 of the canonical text, hexadecimal, 64 characters."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def digest_of_json(value: Plain) -> str:
    """The digest of what was just read from JSON, which can hold nothing without identity but a NaN (ValueError)."""
    return hashlib.sha256(_READ.encode(value).encode()).hexdigest()


_READ = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _checked(value: object, where: str) -> object:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value}, which has no identity; use a finite number")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; only text keys have an identity")
        return {key: _checked(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, which has no identity; use plain values")


def differences(old: Plain, new: Plain, where: str = "") -> list[tuple[str, object, object]]:
    """The fields in which two plain values differ, as (dotted name, old, new); absent fields read None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}):
            found += differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return found
    return [] if canonical(old) == canonical(new) else [(where, old, new)]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[Path]:
    """Every file below `folder`, hidden ones and folders left out, in one fixed order."""
    return [folder / name for name in list_names(folder)]


def list_names(folder: Path) -> list[str]:
    """As `list_files`, as names relative to the folder: where there are many, paths take longer than files."""
    found, above = list[str](), len(str(folder)) + 1
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = f"{root}/"[above:]
        found += [inside + name for name in sorted(names) if not name.startswith(".")]
    return found


def folder_digest(folder: Path, memory: Path) -> str:
    """Digest of a folder's files by content.

    Large models are hashed once: `memory` (a JSON file) keeps each file's digest with its size and mtime.
    """
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    seen: dict[str, list[Any]] = {}
    for path in list_files(folder):
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        old = known.get(str(path))
        seen[str(path)] = old if old and old[:2] == stamp else [*stamp, file_digest(path)]
    if seen != known:
        from adatsq_pipe.storage.files import write_text

        write_text(memory, json.dumps(seen, indent=1))
    return digest({str(Path(name).relative_to(folder)): entry[2] for name, entry in seen.items()})
