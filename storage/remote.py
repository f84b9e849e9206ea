"""A run directory at a URL, and its mirror in a folder of this machine.

Files are written to the mirror and then uploaded; files that are read are downloaded once and kept, so every other
module works with local paths. The mirror may be deleted at any time, and each machine has its own.
Credentials and endpoints come from fsspec and the store's own environment. They are never written to disk.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.files import is_safe_relative
from adatsq_pipe.storage.fingerprint import digest

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CACHE = "ADATSQ_PIPE_CACHE"
"""Environment variable: the folder that holds the mirrors [default: the user's cache folder]."""
_EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs"}
"""URL scheme -> the extra of this package that installs its file system."""


@dataclass(frozen=True)
class Remote:
    """The files below `url`, by their names relative to it, and their mirror `local`.

    `files` is the store's file system and `base` the path of `url` in it. `sizes` (bytes by name) is what is known of
    the store: the last listing, plus what was uploaded, downloaded or looked up since.
    """

    url: str
    local: Path
    files: AbstractFileSystem
    base: str
    sizes: dict[str, int] = field(default_factory=dict)
    modified: dict[str, float] = field(default_factory=dict)
    """When files were written (Unix seconds), of those of which the last listing says so."""
    _current: set[str] = field(default_factory=set)

    def _path(self, name: str) -> str:
        return f"{self.base}/{name}"

    def refresh(self, prefix: str = "") -> None:
        """List the store (or only what is below the name `prefix`) and replace what was known of it.

        Raises StorageError if it holds a name that would lead out of the mirror.
        """
        self.files.invalidate_cache()
        if not prefix:
            self._current.add("all")
        try:
            entries = self.files.find(self._path(prefix) if prefix else self.base, detail=True)
        except FileNotFoundError:
            entries = {}
        for name in [n for n in self.sizes if not prefix or n.startswith(f"{prefix}/")]:
            del self.sizes[name]
        for path, entry in entries.items():
            name = path.removeprefix(self.base).lstrip("/")
            if not is_safe_relative(name):
                raise StorageError(f"{self.url} holds a file named {name!r}, which leads out of it; remove it there")
            self.sizes[name] = int(entry["size"] or 0)
            if (when := _modified(entry)) is not None:
                self.modified[name] = when

    @property
    def is_current(self) -> bool:
        """Whether the whole store was listed, and `invalidate` was not called since."""
        return bool(self._current)

    def invalidate(self) -> None:
        """Note that other processes are about to write to the store, so that the listing will be out of date."""
        self._current.clear()

    def exists(self, name: str) -> bool:
        """Whether the store has the file. Asks the store only about names that are not known to exist."""
        if name not in self.sizes:
            try:
                self.sizes[name] = int(self.files.info(self._path(name))["size"] or 0)
            except FileNotFoundError:
                return False
        return True

    def download(self, names: Iterable[str], *, refresh: bool = False) -> list[str]:
        """Copy files to the mirror in one request, and return the names that the store does not have.

        A file that is in the mirror at its known size is not downloaded again, unless `refresh` is set.
        """
        wanted = [n for n in names if refresh or n not in self.sizes or _size(self.local / n) != self.sizes[n]]
        missing = [n for n in wanted if not self.exists(n)]
        wanted = [n for n in wanted if n not in set(missing)]
        if wanted:
            self.local.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.local, prefix=".fetching-") as folder:
                partial = [Path(folder) / str(i) for i in range(len(wanted))]
                self.files.get([self._path(n) for n in wanted], [str(path) for path in partial])
                for name, path in zip(wanted, partial, strict=True):
                    self.sizes[name] = path.stat().st_size
                    (self.local / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, self.local / name)
        return missing

    def digest(self, name: str) -> str:
        """SHA-256 of a file in the store, read without keeping it."""
        with self.files.open(self._path(name), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def upload(self, names: Sequence[str]) -> None:
        """Copy the mirror's files of these names to the store in one request. Each appears whole or not at all."""
        if names:
            self.files.put([str(self.local / n) for n in names], [self._path(n) for n in names])
            self.sizes.update({n: (self.local / n).stat().st_size for n in names})

    def remove(self, names: Sequence[str]) -> None:
        """Remove files from the store. Names that it does not have are skipped."""
        present = [n for n in names if self.exists(n)]
        if present:
            self.files.rm([self._path(n) for n in present])
        for name in present:
            self.sizes.pop(name, None)

    def list_prefix(self, prefix: str) -> list[str]:
        """Names of the known files below the name `prefix`, sorted."""
        return sorted(n for n in self.sizes if n.startswith(f"{prefix}/"))


def _modified(entry: Mapping[str, object]) -> float | None:
    """When a listed file was written; stores have other names and types for it."""
    for key in ("LastModified", "last_modified", "mtime", "updated", "created"):
        when = entry.get(key)
        if isinstance(when, str):
            try:
                when = datetime.fromisoformat(when)
            except ValueError:
                continue
        if isinstance(when, datetime):
            return when.timestamp()
        if isinstance(when, int | float):
            return float(when)
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def is_url(text: str) -> bool:
    return "://" in text


@lru_cache(maxsize=8)
def open_remote(url: str) -> Remote:
    """The store at `url`, opened once per process.

    Raises StorageError for a URL with credentials, an unknown scheme, or a scheme whose package is not installed.
    """
    import fsspec  # not needed by runs in a folder

    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        raise StorageError(
            f"the run directory {parts.scheme}://{parts.hostname}{parts.path} is named with credentials or a query; "
            "put them into the store's own environment variables or configuration files, never in the URL"
        )
    try:
        files, base = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(parts.scheme)
        install = f"pip install 'adatsq-pipe[{extra}]'" if extra else "install fsspec's package for it"
        raise StorageError(f"{url} needs another package ({error}): {install}") from None
    except ValueError as error:
        raise StorageError(f"{url} is not a URL that fsspec knows: {error}") from None
    return Remote(url=url.rstrip("/"), local=mirror_path(url), files=files, base=str(base).rstrip("/"))


def mirror_path(url: str) -> Path:
    """The folder of this machine that mirrors `url`."""
    root = os.environ.get(CACHE) or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "adatsq-pipe")
    return Path(root).expanduser() / digest(url.rstrip("/"))[:16]
