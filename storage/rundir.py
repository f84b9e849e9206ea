"""A run directory: its format, its lock, and where each stage keeps its bytes.

`<run>/run.json` (format), `<run>/<stage>/<fingerprint>/` (a Manifest each), `<run>/model` (a link), `<run>/report/`,
`<run>/published/`.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.files import write_text
from adatsq_pipe.storage.fingerprint import Plain, canonical
from adatsq_pipe.storage.manifest import Manifest

FORMAT = 1


@dataclass(frozen=True)
class RunDir:
    """Paths of one run. Nothing is created by making the value; `create` and `lock` touch the disk."""

    path: Path

    @property
    def model(self) -> Path:
        return self.path / "model"

    def published(self, assembled: str, evaluated: str) -> Path:
        """The assembled folder together with what its evaluation found."""
        return self.path / "published" / assembled[:16] / evaluated[:16]

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def identity_memory(self) -> Path:
        return self.path / "model_files.json"

    def manifest(self, stage: str, fingerprint: str) -> Manifest:
        return Manifest(stage, self.path / stage / fingerprint[:16])

    def exists(self) -> bool:
        return (self.path / "run.json").is_file()

    def create(self) -> None:
        """Make the directory, or check that an existing one has this program's format."""
        if not self.exists():
            if self.path.is_dir() and any(not p.name.startswith(".") for p in self.path.iterdir()):
                raise StorageError(f"{self.path} is not empty and holds no run; name another --run-dir")
            write_text(self.path / "run.json", json.dumps({"format": FORMAT}))
        self.check()

    def check(self) -> None:
        """Raise StorageError unless this is a run directory of the present format."""
        path = self.path / "run.json"
        try:
            found = json.loads(path.read_text())["format"]
        except FileNotFoundError:
            raise StorageError(f"{self.path} holds no run (no run.json); name the --run-dir of a run") from None
        except (ValueError, KeyError, TypeError):
            raise StorageError(f"{path} is not readable; restore it as {{'format': {FORMAT}}} or start anew") from None
        if found != FORMAT:
            raise StorageError(
                f"{self.path} was written in format {found}, this version reads format {FORMAT}; "
                "use the version that wrote it, or another --run-dir"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for one run; a second holder is refused and told who the first is."""
        holder = self.path / ".holder.json"
        try:
            with FileLock(self.path / ".lock", timeout=0):
                write_text(holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
                yield
        except Timeout:
            try:
                who = json.loads(holder.read_text())
                named = f"process {who['pid']} on {who['host']}"
            except (OSError, ValueError, KeyError):
                named = "another process"
            raise StorageError(f"{self.path} is in use by {named}; wait for it or name another --run-dir") from None

    def log(self, entry: Mapping[str, Plain]) -> None:
        """Append one line to the run's log, which vouches for nothing: it is where wall times are looked up."""
        with (self.path / "log.jsonl").open("a") as file:
            file.write(canonical(entry) + "\n")

    def logged(self) -> Iterator[dict[str, Any]]:
        """The log's entries; a line that a kill has torn is passed over."""
        path = self.path / "log.jsonl"
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry

    def record_identity(self, stage: str, fingerprint: str, identity: Plain) -> None:
        """Keep what a fingerprint was made of, so that a later change can be shown field by field."""
        path = self.path / stage / fingerprint[:16] / "identity.json"
        if not path.exists():
            write_text(path, json.dumps(identity, indent=1, sort_keys=True))

    def identities(self, stage: str) -> list[dict[str, Plain]]:
        """What the stage's folders were made of, newest first."""
        found = sorted((self.path / stage).glob("*/identity.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        return [json.loads(path.read_text()) for path in found]
