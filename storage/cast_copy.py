"""A copy of a pipeline folder whose weights are cast already: the processes of a machine that load it share its memory.

Weights that are loaded in the dtype that they are stored in are mapped from their file, and the system holds each page
once. Weights that are cast are a copy in every process. So one process casts them to files, under a lock, and all map
those. What is not cast is a link to the source.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.files import UNFINISHED, copy_files
from adatsq_pipe.storage.fingerprint import Plain, digest
from adatsq_pipe.storage.model_files import components, loaded_files
from adatsq_pipe.storage.weights import LazyTensor, lazy_tensors, write_safetensors

if TYPE_CHECKING:
    import torch

CAST = "cast"
"""The folder of a run directory that holds the copies, by machine; it is removed when the run ends."""
SMALLEST = 2**26
"""Bytes of cast weights from which a copy is made."""
ROOM = 1.05
"""How much free space a copy needs, over its own size."""
STORED = ("torch.float32", "torch.bfloat16", "torch.float16")
"""Dtypes that are cast."""


def home_of(run: Path) -> Path:
    """Where the copies of this machine lie in the run directory `run`."""
    return run / CAST / socket.gethostname()


def cast_bytes(run: Path) -> int:
    """Bytes of all copies in a run directory, those of other machines too. Links count nothing."""
    found = 0
    for folder, _, names in os.walk(run / CAST):
        for name in names:
            with suppress(OSError):
                found += os.lstat(f"{folder}/{name}").st_size if not os.path.islink(f"{folder}/{name}") else 0
    return found


def copy_bytes(source: Path, *, dtype: str, kept: Mapping[str, Sequence[str]]) -> int:
    """Bytes of the weights that `cast_copy` would write; 0 if a copy is of no use or cannot be made."""
    import torch  # `run` names the folder before any worker is there

    try:
        return _size(_cast(source, getattr(torch, dtype), kept))
    except (OSError, StorageError):
        return 0


def cast_copy(source: Path, home: Path, *, dtype: str, kept: Mapping[str, Sequence[str]]) -> Path | None:
    """The copy below `home` of the pipeline at `source`, made now unless it is there, with weights in `dtype`.

    `kept` has the components that may be cast, and for each the parts of names of tensors that stay as they are
    stored. None if a copy is of no use (few weights would be cast) or cannot be made (no room, a damaged file): then
    the source is to be loaded.
    """
    import torch  # `run` names the folder before any worker is there

    target: torch.dtype = getattr(torch, dtype)
    try:
        names = loaded_files(source)
        stamps: list[Plain] = [[name, (stat := (source / name).stat()).st_size, stat.st_mtime_ns] for name in names]
        what: Plain = {
            "source": str(source),
            "files": stamps,
            "dtype": dtype,
            "kept": {n: sorted(k) for n, k in kept.items()},
        }
        folder = home / digest(what)[:16]
        if folder.is_dir():
            return folder
        cast = _cast(source, target, kept)
        if not (size := _size(cast)):
            return None
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock"):
            if not folder.is_dir():
                if shutil.disk_usage(home).free < ROOM * size:
                    return None
                _write(source, folder, names, cast)
    except (OSError, StorageError):
        return None
    return folder


def _cast(source: Path, target: torch.dtype, kept: Mapping[str, Sequence[str]]) -> dict[str, dict[str, LazyTensor]]:
    """By file of weights that has tensors to cast: all of its tensors, cast when they are loaded."""
    found: dict[str, dict[str, LazyTensor]] = {}
    for component in components(source).values():
        if component.name not in kept or not all(name.endswith(".safetensors") for name in component.weights):
            continue
        for name in component.weights:
            stored = lazy_tensors(source / name)
            stays = {n for n, t in stored.items() if _stays(n, t.dtype, target, kept[component.name])}
            if len(stays) < len(stored):
                found[name] = {n: t if n in stays else _as(t, target) for n, t in stored.items()}
    return found


def _size(cast: Mapping[str, Mapping[str, LazyTensor]]) -> int:
    """Bytes of a copy with these files; 0 where it is not worth a copy."""
    size = sum(tensor.nbytes for tensors in cast.values() for tensor in tensors.values())
    return size if size >= SMALLEST else 0


def _stays(name: str, stored: torch.dtype, target: torch.dtype, parts: Sequence[str]) -> bool:
    return stored == target or str(stored) not in STORED or any(part in name for part in parts)


def _as(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    return LazyTensor(tensor.shape, dtype, partial(_loaded, tensor, dtype))


def _loaded(tensor: LazyTensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.load().to(dtype)


def _write(
    source: Path, folder: Path, names: Sequence[str], cast: Mapping[str, Mapping[str, LazyTensor]]
) -> None:  # fmt: skip
    """Make the copy under another name, then rename it: a killed process leaves no half of one."""
    unfinished = folder.with_name(folder.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        weights = {name for component in components(source).values() for name in component.weights}
        copy_files(source, unfinished, [name for name in names if name not in weights])
        for name in weights:
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            if name in cast:
                write_safetensors(unfinished / name, cast[name], aligned=True)
            else:
                (unfinished / name).symlink_to((source / name).resolve())
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
