"""A run directory: its format, its lock, and where each stage keeps its bytes.

`<run>/run.json` (format), `<run>/<stage>/<fingerprint>/` (a Manifest each), `<run>/model` (a link), `<run>/report/`,
`<run>/published/`, `<run>/given/` (pictures that came with prompts). It is a folder, or a URL that fsspec knows; then
`path` is this machine's mirror of it, and `model` there is a copy.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.files import is_safe_relative, symlink_atomically, write_bytes, write_text
from adatsq_pipe.storage.fingerprint import Plain, canonical, list_files
from adatsq_pipe.storage.lease import lease
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.remote import Remote, is_url, open_remote

FORMAT = 1


SMALL = ("run.json", "config.toml", "log.jsonl", "model.json", "report/summary.json")
"""What is read of a run directory at a URL besides markers: it may change, so it is fetched whenever that is opened."""


@dataclass(frozen=True)
class RunDir:
    """Paths of one run. Nothing is created by making the value; `create` and `lock` touch the disk."""

    path: Path
    url: str = ""

    @classmethod
    def at(cls, where: str) -> RunDir:
        """The run directory at a path or URL."""
        if where.startswith("file://"):
            where = where.removeprefix("file://")
        if not is_url(where):
            return cls(Path(where).expanduser().resolve())
        return cls(open_remote(where).local, open_remote(where).url)

    @classmethod
    def open(cls, where: str) -> RunDir:
        """As `at`, and if it is a URL, what plans are made from is brought here."""
        run = cls.at(where)
        run.refresh()
        return run

    @property
    def uri(self) -> str:
        """What `at` takes, on any machine."""
        return self.url or str(self.path)

    def display(self, name: str = "") -> str:
        """The run directory, or a file in it, as one would write it here: relative if it lies below, else whole."""
        relative = os.path.relpath(self.path)
        place = self.url or (str(self.path) if relative.startswith("..") else relative)
        return f"{place}/{name}" if name else place

    @property
    def remote(self) -> Remote | None:
        return open_remote(self.url) if self.url else None

    @property
    def model(self) -> Path:
        return self.path / "model"

    def published_folder(self, assembled: str, evaluated: str) -> Path:
        """The assembled folder together with what its evaluation found."""
        return self.path / "published" / assembled[:16] / evaluated[:16]

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def digest_cache(self) -> Path:
        return self.path / "model_files.json"

    def manifest(self, stage: str, fingerprint: str) -> Manifest:
        return Manifest(stage, self.path / stage / fingerprint[:16], self.remote)

    def manifests(self) -> list[Manifest]:
        """Of every stage's every folder."""
        if self.remote is not None:
            parts = {tuple(name.split("/")[:2]) for name in self.remote.sizes if "/markers/" in name}
            found = sorted(self.path.joinpath(*part) for part in parts)
        else:
            found = sorted(p for p in self.path.glob("*/*") if (p / "markers").is_dir())
        return [Manifest(folder.parent.name, folder, self.remote) for folder in found]

    def refresh(self) -> None:
        """Learn what is there, from a listing in pages, and bring the few small files here that plans are made from."""
        if self.remote is None:
            return
        try:
            self.remote.refresh()
            self.remote.download([n for n in self.remote.sizes if "/failures/" in n or n.endswith("/identity.json")])
            self.remote.download([n for n in SMALL if n in self.remote.sizes], refresh=True)
        except OSError as error:
            raise StorageError(
                f"{self.url} cannot be read ({type(error).__name__}: {error}); see that the bucket is there and that "
                "this machine has the store's credentials"
            ) from None
        for name in SMALL:
            if name not in self.remote.sizes:
                (self.path / name).unlink(missing_ok=True)

    def write(self, name: str, text: str) -> None:
        """Write a small file of the run itself."""
        write_text(self.path / name, text)
        self.upload(name)

    def upload(self, *names: str) -> None:
        """Files and folders of the run that were written here: there too, if this is a mirror."""
        if self.remote is None:
            return
        found = [p for n in names for p in (list_files(self.path / n) if (self.path / n).is_dir() else [self.path / n])]
        self.remote.upload([str(path.relative_to(self.path)) for path in found])

    def prompt_image(self, digest: str) -> Path:
        """A picture that came with a prompt, here."""
        name = f"given/{digest}"
        if not is_safe_relative(name) or (self.remote is not None and self.remote.download([name])):
            raise StorageError(f"{self.display(name)} is not there; run again with the file of prompts that named it")
        return self.path / name

    def add_prompt_images(self, pictures: Mapping[str, Path]) -> None:
        """Keep pictures that come with prompts under their digests, so that every machine has them."""
        for digest, path in pictures.items():
            if not (self.path / "given" / digest).is_file():
                write_bytes(self.path / "given" / digest, path.read_bytes())
                self.upload(f"given/{digest}")

    def publish(self, folder: Path, assembled: str, evaluated: str = "") -> None:
        """Make `folder` (in this directory) the run's `model`; one with its evaluation is not replaced by one without.

        A store knows no links: it gets a copy.
        """
        if self.remote is None:
            symlink_atomically(self.model, folder)
            return
        said = {"assembled": assembled[:16], "evaluated": evaluated[:16]}
        try:
            old = json.loads((self.path / "model.json").read_text())
        except (OSError, ValueError):
            old = {}
        if old == said or (not evaluated and old.get("assembled") == said["assembled"]):
            return
        symlink_atomically(self.model, folder)
        stale = [n for n in self.remote.list_prefix("model") if not (self.path / n).is_file()]
        self.remote.remove(["model.json", *stale])
        self.upload("model")
        self.write("model.json", json.dumps(said))

    def exists(self) -> bool:
        return (self.path / "run.json").is_file()

    def create(self) -> None:
        """Make the directory, or check that an existing one has this program's format."""
        if not self.exists():
            if self._occupied():
                raise StorageError(f"{self.display()} is not empty and holds no run; name another --run-dir")
            try:
                self.write("run.json", json.dumps({"format": FORMAT}))
            except FileNotFoundError as error:
                raise StorageError(f"{self.display()} cannot be written ({error}); make the bucket first") from None
            except PermissionError as error:
                raise StorageError(f"{self.display()} cannot be written ({error}); see to its rights") from None
        self.check()

    def _occupied(self) -> bool:
        """Whether there is anything there already (of a mirror only the store counts)."""
        if self.remote is not None:
            return bool(self.remote.sizes)
        return self.path.is_dir() and any(not p.name.startswith(".") for p in self.path.iterdir())

    def check(self) -> None:
        """Raise StorageError unless this is a run directory of the present format."""
        path = self.path / "run.json"
        try:
            found = json.loads(path.read_text())["format"]
        except FileNotFoundError:
            raise StorageError(f"{self.display()} holds no run (no run.json); name the --run-dir of a run") from None
        except (ValueError, KeyError, TypeError):
            raise StorageError(
                f"{path} is not readable; restore it as {{'format': {FORMAT}}} or start a new run"
            ) from None
        if found != FORMAT:
            raise StorageError(
                f"{self.display()} was written in format {found}, this version reads format {FORMAT}; "
                "use the version that wrote it, or another --run-dir"
            )

    @contextmanager
    def lock(self, lost: Callable[[str], None] = lambda said: None) -> Iterator[str]:
        """Hold the directory for one run; a second holder is refused and told who the first is.

        Yields what there is to say of it: "" or, at a URL, that a dead run's lock was taken over. `lost` is told if
        another run takes ours. What killed tries left on this machine is swept.
        """
        if self.remote is None:
            with self._file_lock():
                self._sweep()
                yield ""
            return
        with lease(self.remote, lost) as said, self._file_lock():
            self._sweep()
            yield said

    def _sweep(self) -> None:
        for manifest in self.manifests():
            manifest.sweep()

    @contextmanager
    def _file_lock(self) -> Iterator[None]:
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
            raise StorageError(
                f"{self.display()} is in use by {named}; wait for it or name another --run-dir"
            ) from None

    def log(self, entry: Mapping[str, Plain]) -> None:
        """Append one line to the run's log, which vouches for nothing: it is where wall times are looked up."""
        with (self.path / "log.jsonl").open("a") as file:
            file.write(canonical(entry) + "\n")
        self.upload("log.jsonl")

    def log_entries(self) -> Iterator[dict[str, Any]]:
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
        name = f"{stage}/{fingerprint[:16]}/identity.json"
        if not (self.path / name).exists():
            self.write(name, json.dumps(identity, indent=1, sort_keys=True))

    def identities(self, stage: str) -> list[dict[str, Plain]]:
        """What the stage's folders were made of, newest first."""
        found = sorted((self.path / stage).glob("*/identity.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        return [json.loads(path.read_text()) for path in found]
