"""A store in memory that records its requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

from adatsq_pipe.storage.remote import Remote


class RecordingStore(MemoryFileSystem):
    """An empty store. `calls` lists requests in order: ("put", "/run/a", "/run/b"), ("find", "/run"), ..."""

    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.store: dict[str, Any] = {}
        self.pseudo_dirs = [""]
        self.calls: list[tuple[str, ...]] = []

    def put(self, lpath: list[str], rpath: list[str], **options: Any) -> None:
        self.calls.append(("put", *rpath))
        super().put(lpath, rpath, **options)

    def get(self, rpath: list[str], lpath: list[str], **options: Any) -> None:
        self.calls.append(("get", *rpath))
        super().get(rpath, lpath, **options)

    def rm(self, path: str | list[str], **options: Any) -> None:
        self.calls.append(("rm", *([path] if isinstance(path, str) else path)))
        super().rm(path, **options)

    def find(self, path: str, **options: Any) -> Any:
        self.calls.append(("find", path))
        return super().find(path, **options)

    def invalidate_cache(self, path: str | None = None) -> None:
        self.calls.append(("invalidate_cache",))
        super().invalidate_cache(path)

    def requests(self, kind: str) -> list[tuple[str, ...]]:
        """The names of every request of this kind, in order."""
        return [names for name, *names in self.calls if name == kind]  # type: ignore[misc]

    def contents(self) -> dict[str, bytes]:
        """Every object by its full name."""
        return {name: self.cat_file(name) for name in sorted(self.store)}


def remote_of(store: RecordingStore, local: Path) -> Remote:
    """The run directory `/run` of the store, with its mirror in `local`."""
    return Remote(url="memory://run", local=local, files=store, base="/run")
