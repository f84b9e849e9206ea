"""Files, links and trees that appear whole or not at all: written under a hidden name, then renamed into place."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

COPY_LIMIT = 2**20
"""Bytes up to which `clone_tree` copies a file. It hard-links larger ones."""

Stamp: TypeAlias = tuple[int, int, int]
"""What tells a file from the one that replaces it: inode, time of the last change in ns, bytes."""

PARTIAL = ".partial-"
"""How names of files begin that are being written."""
UNFINISHED = ".unfinished"
"""How names of folders end that are being written."""


def is_safe_relative(name: str) -> bool:
    """Whether a relative name, read from a file or a store, stays below the folder that it is joined to."""
    return (
        bool(name)
        and "\0" not in name
        and "\\" not in name
        and not name.startswith("/")
        and ".." not in name.split("/")
    )


def file_size(path: str) -> int | None:
    """Bytes of a file; None if there is none, or something else is there. One look at the disk."""
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def stamp_of(path: str | Path) -> Stamp:
    """Raises FileNotFoundError."""
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, whatever the locale says, without a byte-order mark. Raises UnicodeDecodeError."""
    return path.read_text(encoding="utf-8-sig")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises FileNotFoundError, or ValueError for whatever else keeps it from being read."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, or ValueError for any other content."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"it holds {_kind(value)} in place of an object")
    return value


def _kind(value: object) -> str:
    """What a JSON value is, in JSON's own words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "a list" if isinstance(value, list) else "a text" if isinstance(value, str) else "a number"


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` with `data` atomically: a killed process leaves the old file or the new one.

    Nothing is flushed to disk. A file torn by a power cut does not match its digest, so its unit is computed again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{PARTIAL}{secrets.token_hex(8)}"
    try:
        with partial.open("xb") as file:  # tempfile would make it readable by its owner alone, whatever the umask says
            file.write(data)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on `path`, and give the file the mode that any new file has here.

    safetensors makes files that only their owner can read, whatever the umask says.
    """
    path.touch()
    mode = path.stat().st_mode
    write(path)
    if path.stat().st_mode != mode:
        path.chmod(mode)


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy the files `names` (relative) of `source` into the folder `target`, with the modes of new files.

    The contents of links are copied. A read-only source makes no read-only copy.
    """
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def symlink_atomically(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target`, replacing an older link in one step.

    Raises FileExistsError if `link` is a real file or folder.
    """
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} exists and is not a link made by this program; move it elsewhere")
    os.replace(partial, link)


def link_or_copy(path: Path, copy: Path) -> None:
    """Make `copy` a hard link to a large file where the file system allows it, else a copy of it."""
    try:
        if path.stat().st_size <= COPY_LIMIT:
            raise OSError
        os.link(path, copy)
    except OSError:
        shutil.copyfile(path, copy)


def clone_tree(source: Path, target: Path, extra_files: Mapping[str, bytes]) -> None:
    """Make `target` a copy of the tree `source`, with `extra_files` (relative name -> content) put over it.

    Small files are copied; large ones are hard-linked where the file system allows it, and copied otherwise.
    The old `target` is replaced only when the new tree is complete.
    """
    unfinished = target.with_name(target.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        copy = unfinished / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, copy)
    for name, data in extra_files.items():
        write_bytes(unfinished / name, data)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
