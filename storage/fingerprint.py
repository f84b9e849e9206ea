"""Digests of values, files and folders: how a stage, a policy or a model folder is identified.

A value is hashed through its one canonical JSON text. A value without such a text (a set, an object, a NaN) is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from adatsq_pipe.storage.files import Stamp, read_json_object, stamp_of, write_text

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


def file_digest_once(path: Path) -> str:
    """`file_digest`, computed once a process as long as the file's inode, mtime and size stay: for those who read many
    parts of the same files. Raises FileNotFoundError."""
    return _digest_of(str(path), stamp_of(path))


@lru_cache(maxsize=2**14)
def _digest_of(path: str, stamp: Stamp) -> str:
    """`stamp` is part of the cache's key, so that a replaced file is hashed again."""
    return file_digest(Path(path))


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


Hashed: TypeAlias = "tuple[int, int, str]"
"""Size, mtime in ns and SHA-256 of a file."""


def folder_digest(folder: Path, names: Sequence[str], cache: Path) -> str:
    """Digest of the files `names` of a folder: their relative names and their contents.

    `cache` (a JSON file) holds each file's size, mtime and digest, so that a large model is hashed once. One that is
    not as it was written counts for nothing.

    Versions before 0.2 took every file of the folder into the digest. A run directory that one of them wrote keeps that
    digest as long as the files `names` stay as they were: nothing is computed again.
    """
    files, kept = _hashed_before(folder, names, cache)
    entries: dict[str, Hashed] = {}
    for path in (folder / name for name in names):
        stat = path.stat()
        size, mtime, old = stat.st_size, stat.st_mtime_ns, files.get(str(path))
        entries[str(path)] = (size, mtime, old[2] if old and old[:2] == (size, mtime) else file_digest(path))
    body: dict[str, Plain] = {"files": entries, "kept": kept}
    text = json.dumps({**body, "self": digest(body)}, indent=1)
    with suppress(OSError):  # a run directory that cannot be written is read all the same
        if not cache.exists() or cache.read_bytes() != text.encode():
            write_text(cache, text)
    found = digest({name: entries[str(folder / name)][2] for name in names})
    return kept.get(found, found)


def _hashed_before(folder: Path, names: Sequence[str], cache: Path) -> tuple[dict[str, Hashed], dict[str, str]]:
    """The files in the cache, and the digests that stand in for others: of `names` -> of all files of the folder."""
    try:
        cached = read_json_object(cache)
        if cached.pop("self", None) not in (None, digest_of_json(cached)):
            return {}, {}
        before = "files" not in cached
        files = {
            str(path): (int(a), int(b), str(c)) for path, (a, b, c) in (cached if before else cached["files"]).items()
        }
        kept = {} if before else {str(found): str(whole) for found, whole in cached["kept"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}, {}
    inside = {path[len(f"{folder}/") :]: entry[2] for path, entry in files.items() if path.startswith(f"{folder}/")}
    if before and inside:
        kept = {digest({name: inside[name] for name in names if name in inside}): digest(inside)}
    return files, kept
