"""A run directory that lives at a URL, and its mirror in a folder of this machine.

Everything is written here first and then sent; what is read is fetched once and kept, so every other module goes on
working with files. The mirror vouches for nothing: it may be deleted at any time, and each machine has its own.
Credentials and endpoints are those of fsspec and of the store's own environment; none is ever written down.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.files import is_safe_relative
from adatsq_pipe.storage.fingerprint import digest

CACHE = "ADATSQ_PIPE_CACHE"
"""Environment variable: where mirrors are kept [default: the user's cache folder]."""
_EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs"}
"""By the scheme of a URL, the extra of this package that opens it."""


@dataclass(frozen=True)
class Remote:
    """Files below `url` by their names relative to it, and their mirror `local`.

    `sizes` is what is known to be there: of the last listing, and what was sent or fetched since.
    """

    url: str
    local: Path
    files: Any
    base: str
    sizes: dict[str, int] = field(default_factory=dict)
    _current: set[str] = field(default_factory=set)

    def _at(self, name: str) -> str:
        return f"{self.base}/{name}"

    def refresh(self, prefix: str = "") -> None:
        """List what is there (below `prefix`), in the store's pages, and believe that from now on."""
        self.files.invalidate_cache()
        if not prefix:
            self._current.add("all")
        root = self._at(prefix) if prefix else self.base
        try:
            found = self.files.find(root, detail=True)
        except FileNotFoundError:
            found = {}
        for name in [n for n in self.sizes if not prefix or n.startswith(f"{prefix}/")]:
            del self.sizes[name]
        for path, entry in found.items():
            name = path.removeprefix(self.base).lstrip("/")
            if not is_safe_relative(name):
                raise StorageError(f"{self.url} holds a file named {name!r}, which leads out of it; remove it there")
            self.sizes[name] = int(entry["size"] or 0)

    @property
    def is_current(self) -> bool:
        """Whether all has been listed, and nobody else has been given work since."""
        return bool(self._current)

    def invalidate(self) -> None:
        """From now on other processes put files there, too."""
        self._current.clear()

    def exists(self, name: str) -> bool:
        """Whether the file is there; asks the store only about names it has not heard of."""
        if name not in self.sizes:
            try:
                self.sizes[name] = int(self.files.info(self._at(name))["size"] or 0)
            except FileNotFoundError:
                return False
        return True

    def download(self, names: Iterable[str], *, refresh: bool = False) -> list[str]:
        """Bring files here, several at a time, unless they are (`refresh`: even then). Returns the names not there."""
        wanted = [n for n in names if refresh or n not in self.sizes or _size(self.local / n) != self.sizes[n]]
        missing = [n for n in wanted if not self.exists(n)]
        wanted = [n for n in wanted if n not in set(missing)]
        if wanted:
            self.local.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.local, prefix=".fetching-") as beside:
                here = [Path(beside) / str(i) for i in range(len(wanted))]
                self.files.get([self._at(n) for n in wanted], [str(path) for path in here])
                for name, path in zip(wanted, here, strict=True):
                    self.sizes[name] = path.stat().st_size
                    (self.local / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, self.local / name)
        return missing

    def upload(self, names: Sequence[str]) -> None:
        """Put the mirror's files of these names there, several at a time. A file appears whole or not at all."""
        if names:
            self.files.put([str(self.local / n) for n in names], [self._at(n) for n in names])
            self.sizes.update({n: (self.local / n).stat().st_size for n in names})

    def remove(self, names: Sequence[str]) -> None:
        """Remove files there, if they are there."""
        known = [n for n in names if self.exists(n)]
        if known:
            self.files.rm([self._at(n) for n in known])
        for name in known:
            self.sizes.pop(name, None)

    def list_prefix(self, name: str) -> list[str]:
        """Names of the known files below `name`, in order."""
        return sorted(n for n in self.sizes if n.startswith(f"{name}/"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def is_url(text: str) -> bool:
    return "://" in text


@lru_cache(maxsize=8)
def open_remote(url: str) -> Remote:
    """The store at `url`, opened once in this process. Raises StorageError for one that cannot be used."""
    import fsspec

    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        raise StorageError(
            f"the run directory {parts.scheme}://{parts.hostname}{parts.path} is given with credentials or a query; "
            "give them to the store's own environment or configuration files, never in the URL"
        )
    try:
        files, base = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(parts.scheme)
        install = f"pip install 'adatsq-pipe[{extra}]'" if extra else "install fsspec's package for it"
        raise StorageError(f"{url} needs one package more ({error}): {install}") from None
    except ValueError as error:
        raise StorageError(f"{url} is no URL that fsspec knows: {error}") from None
    return Remote(url=url.rstrip("/"), local=mirror_path(url), files=files, base=str(base).rstrip("/"))


def mirror_path(url: str) -> Path:
    """Where this machine keeps its copy of what lies at `url`."""
    root = os.environ.get(CACHE) or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "adatsq-pipe")
    return Path(root).expanduser() / digest(url.rstrip("/"))[:16]
