"""Small files that are either whole or absent: written beside their place, then moved into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path


def is_safe_relative(name: str) -> bool:
    """Whether a relative name, read from a file or a store, leads nowhere but below the folder it is joined to."""
    return (
        bool(name)
        and "\0" not in name
        and "\\" not in name
        and not name.startswith("/")
        and ".." not in name.split("/")
    )


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step; a killed process leaves the old file or the new one.

    Nothing is forced to disk: what a power cut tears does not have its digest, and is done again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, for UTF-8 text."""
    write_bytes(path, text.encode())


def symlink_atomically(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target`, in one step."""
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is in the way: it is not a link of this program; move it elsewhere")
    os.replace(partial, link)


_COPIED = 2**20
"""Files up to this size are copied; larger ones share their bytes with the original."""


def clone_tree(source: Path, target: Path, added: Mapping[str, bytes]) -> None:
    """Make `target` the tree `source` with the files `added` put in, or in the place of its own.

    Small files are copied, large ones hard-linked where that can be. `target` is replaced when its successor is whole.
    """
    whole = target.with_name(target.name + ".unfinished")
    shutil.rmtree(whole, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        there = whole / path.relative_to(source)
        if path.is_dir():
            there.mkdir(parents=True, exist_ok=True)
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.stat().st_size <= _COPIED:
                raise OSError
            os.link(path, there)
        except OSError:
            shutil.copyfile(path, there)
    for name, data in added.items():
        write_bytes(whole / name, data)
    shutil.rmtree(target, ignore_errors=True)
    whole.rename(target)
