"""A run directory: its format, its lock, and where each stage keeps its bytes.

`<run>/run.json` (format), `<run>/<stage>/<fingerprint>/` (one Manifest each), `<run>/published/` (models with their
evaluation), `<run>/model` (a link to the newest of them), `<run>/report/`, `<run>/given/` (images that came with
prompts). See README.md. A run directory is a folder, or a URL that fsspec knows; then `path` is this machine's mirror
of it, and `model` in the store is a copy.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adatsq_pipe.storage import heartbeat
from adatsq_pipe.storage.cast_copy import CAST
from adatsq_pipe.storage.errors import NoRun, StorageError
from adatsq_pipe.storage.files import (
    PARTIAL,
    UNFINISHED,
    is_safe_relative,
    read_json_object,
    symlink_atomically,
    write_bytes,
    write_text,
)
from adatsq_pipe.storage.fingerprint import Plain, canonical, file_digest, list_files, list_names
from adatsq_pipe.storage.heartbeat import PAUSE, Beat, Pulse
from adatsq_pipe.storage.lease import holder as lease_holder
from adatsq_pipe.storage.lease import lease
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.published import MODEL_JSON, PublishedModel, StoredModel, files_of
from adatsq_pipe.storage.remote import Remote, is_url, open_remote

FORMAT = 1
SMALL_FILES = ("run.json", "config.toml", "log.jsonl", MODEL_JSON, "report/summary.json")
"""Files of a run directory at a URL that may change: they are downloaded whenever it is opened."""
HOLDER = ".holder.json"
"""The file that says which process holds the lock of a folder."""
ENTRY = {"stage", "fingerprint", "wall"}
"""What every entry of log.jsonl has."""


@dataclass(frozen=True)
class RunDir:
    """Paths of one run. Making the value touches nothing; `create` and `lock` touch the disk."""

    path: Path
    url: str = ""

    @classmethod
    def at(cls, uri: str) -> RunDir:
        """The run directory at a path or URL. Raises StorageError for a URL that cannot be used."""
        uri = uri.removeprefix("file://")
        if not is_url(uri):
            return cls(Path(uri).expanduser().resolve())
        remote = open_remote(uri)
        return cls(remote.local, remote.url)

    @classmethod
    def open(cls, uri: str) -> RunDir:
        """`at`, and for a URL also `refresh`."""
        run = cls.at(uri)
        run.refresh()
        return run

    @property
    def uri(self) -> str:
        """The argument of `at` that names this run directory on any machine."""
        return self.url or str(self.path)

    def display(self, name: str = "") -> str:
        """The run directory, or a file in it, for messages: relative if below the working folder, else in full."""
        relative = os.path.relpath(self.path)
        shown = self.url or (str(self.path) if relative.startswith("..") else relative)
        return f"{shown}/{name}" if name else shown

    @property
    def remote(self) -> Remote | None:
        return open_remote(self.url) if self.url else None

    @property
    def stored_model(self) -> StoredModel | None:
        """At a URL: the model in the store."""
        return StoredModel(self.remote) if self.remote is not None else None

    @property
    def model(self) -> Path:
        return self.path / "model"

    def published_folder(self, assembled: str, evaluated: str) -> Path:
        """The folder of a model with its evaluation, by the fingerprints of the two stages."""
        return self.path / "published" / assembled[:16] / evaluated[:16]

    def published_models(self) -> list[PublishedModel]:
        """The published models that a marker vouches for. At a URL they are this mirror's, and count for nothing."""
        if self.remote is not None:
            return []
        markers = sorted((self.path / "published").glob("*/*.json"))
        return [PublishedModel(marker.with_suffix("")) for marker in markers]

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def digest_cache(self) -> Path:
        """The cache of `fingerprint.folder_digest` for the model folder."""
        return self.path / "model_files.json"

    def manifest(self, stage: str, fingerprint: str) -> Manifest:
        return Manifest(stage, self.path / stage / fingerprint[:16], self.remote)

    def manifests(self) -> list[Manifest]:
        """The manifests of every fingerprint of every stage."""
        if self.remote is not None:
            parts = {tuple(name.split("/")[:2]) for name in self.remote.sizes if "/markers/" in name}
            folders = sorted(self.path.joinpath(*part) for part in parts)
        else:
            folders = sorted(p for p in self.path.glob("*/*") if (p / "markers").is_dir())
        return [Manifest(folder.parent.name, folder, self.remote) for folder in folders]

    def refresh(self) -> None:
        """At a URL: list the store, and download the small files that plans are made from.

        Raises StorageError if the store does not answer.
        """
        if self.remote is None:
            return
        try:
            self.remote.refresh()
            self.remote.download([n for n in self.remote.sizes if "/failures/" in n or n.endswith("/identity.json")])
            self.remote.download([n for n in SMALL_FILES if n in self.remote.sizes], refresh=True)
        except OSError as error:
            raise StorageError(
                f"{self.url} cannot be read ({type(error).__name__}: {error}); check that the bucket exists and that "
                "this machine has the store's credentials"
            ) from None
        for name in SMALL_FILES:
            if name not in self.remote.sizes:
                (self.path / name).unlink(missing_ok=True)

    def write(self, name: str, text: str) -> None:
        """Write a small file of the run itself."""
        write_text(self.path / name, text)
        self.upload(name)

    def upload(self, *names: str) -> None:
        """At a URL: copy files and folders of the mirror to the store."""
        if self.remote is None:
            return
        files = [p for n in names for p in (list_files(self.path / n) if (self.path / n).is_dir() else [self.path / n])]
        self.remote.upload([str(path.relative_to(self.path)) for path in files])

    def prompt_image(self, digest: str) -> Path:
        """The local file of an image that came with a prompt. Raises StorageError if the run does not have it as it
        was."""
        name = f"given/{digest}"
        path, again = self.path / name, "run again with the prompts file that named it"
        if not is_safe_relative(name) or (self.remote is not None and self.remote.download([name])):
            raise StorageError(f"{self.display(name)} does not exist; {again}")
        if not path.is_file():
            raise StorageError(f"{self.display(name)} does not exist; {again}")
        if self.remote is not None and file_digest(path) != digest:
            self.remote.download([name], refresh=True)
        if file_digest(path) != digest:
            raise StorageError(f"{self.display(name)} is damaged: it does not have the digest in its name; {again}")
        return path

    def damaged_images(self) -> list[str]:
        """Digests of the prompts' images whose files are not what they were."""
        folder = self.path / "given"
        if self.remote is not None:
            self.remote.download(self.remote.list_prefix("given"))
        return [name for name in list_names(folder) if file_digest(folder / name) != name]

    def add_prompt_images(self, images: Mapping[str, Path]) -> None:
        """Copy images that come with prompts into the run, under their digests, so that every machine has them."""
        for digest, path in images.items():
            copy = self.path / "given" / digest
            if not copy.is_file() or file_digest(copy) != digest:
                write_bytes(copy, path.read_bytes())
                self.upload(f"given/{digest}")

    def publish(self, folder: Path, assembled: str, evaluated: str = "") -> None:
        """Make `folder` (in this directory) the run's `model`: by a link, and in a store by a copy.

        A model with its evaluation is not replaced by the same model without one.
        """
        if self.remote is None:
            symlink_atomically(self.model, folder)
            return
        current = {"assembled": assembled[:16], "evaluated": evaluated[:16]}
        stored = StoredModel(self.remote)
        previous = stored.named
        same = {key: previous.get(key) for key in current} == current
        if (same or (not evaluated and previous.get("assembled") == current["assembled"])) and not stored.damage():
            return
        symlink_atomically(self.model, folder)
        stale = [n for n in self.remote.list_prefix("model") if not (self.path / n).is_file()]
        self.remote.remove([MODEL_JSON, *stale])
        self.upload("model")
        self.write(MODEL_JSON, json.dumps({**current, "files": files_of(folder)}))

    def exists(self) -> bool:
        return (self.path / "run.json").is_file()

    def create(self) -> None:
        """Make the directory, or `check` an existing one. Raises NoRun if it holds something else, else as `check`."""
        if not self.exists():
            self._check_place()
            try:
                self.write("run.json", json.dumps({"format": FORMAT}))
            except OSError as error:
                advice = "check its permissions" if self.remote is None else "create the bucket first"
                raise StorageError(f"{self.display()} cannot be written ({error}); {advice}") from None
        self.check()

    def _check_place(self) -> None:
        """Raise NoRun where no new run can be: below a file, or in a folder that holds something else. At a URL
        only the store counts, not its mirror."""
        if self.remote is not None:
            occupied = bool(self.remote.sizes)
        else:
            if (file := next((p for p in (self.path, *self.path.parents) if p.is_file()), None)) is not None:
                raise NoRun(f"{self.display()} cannot be a run directory: {file} is a file; name another")
            occupied = self.path.is_dir() and any(not p.name.startswith(".") for p in self.path.iterdir())
        if occupied:
            raise NoRun(f"{self.display()} is not empty and holds no run; name another --run-dir")

    def check(self) -> None:
        """Raise NoRun where no run is, and StorageError for a run that is not of this program's format."""
        path = self.path / "run.json"
        try:
            version = read_json_object(path)["format"]
        except (FileNotFoundError, NotADirectoryError):
            raise NoRun(f"{self.display()} {self._in_its_place()}") from None
        except (ValueError, KeyError):
            raise StorageError(
                f"{path} is not readable; restore it as {{'format': {FORMAT}}} or start a new run"
            ) from None
        if version != FORMAT:
            raise StorageError(
                f"{self.display()} was written in format {version}, this version reads format {FORMAT}; "
                "use the version that wrote it, or another --run-dir"
            )

    def _in_its_place(self) -> str:
        """What is where a run directory was expected, and what to do."""
        there, again = "no run.json", "name the --run-dir of a run"
        if self.remote is None and not self.path.exists():
            there = "it does not exist"
        elif self.remote is None and not self.path.is_dir():
            there = "it is a file"
        elif self.remote is None and (self.path / "model_index.json").exists():
            there = "it is a pipeline folder"
        elif self.remote is None and any(self.path.glob("*/*/markers")):
            there = "no run.json, though stages are there"
            again = f'restore that file as {{"format": {FORMAT}}}, or name another --run-dir'
        elif self.remote is None and not any(self.path.iterdir()):
            there = "it is empty"
        return f"holds no run ({there}); {again}"

    @contextmanager
    def lock(self, on_lost: Callable[[str], None] = lambda message: None) -> Iterator[str]:
        """Hold the directory for one run, and remove what killed processes left in `attempts/`.

        Yields a message if the lock of a dead run at a URL was taken over, else "". `on_lost` is called, from another
        thread, if another run takes over ours. Raises StorageError, which names the holder, if the lock is held.
        """
        if self.remote is None:
            with self._file_lock(), self._swept():
                yield ""
            return
        with lease(self.remote, on_lost) as message, self._file_lock(), self._swept():
            yield message

    def holder(self) -> Beat | None:
        """The process that holds the lock, or that held it when it was killed; None if the last one ended by itself.

        `is_alive` of it says whether it is still there.
        """
        return heartbeat.read(self.path / HOLDER) if self.remote is None else lease_holder(self.remote)

    def workers(self) -> list[Beat]:
        """The last signs of life of the workers of the present or the last run. At a URL, as it was last listed."""
        return heartbeat.workers(self.path, self.remote)

    @contextmanager
    def _swept(self) -> Iterator[None]:
        """Remove what killed processes left, before and after: a worker may die in a run that ends well."""
        self._sweep()
        try:
            yield
        finally:
            heartbeat.rest()
            self._sweep()

    def _sweep(self) -> None:
        """Remove unfinished units, also of stages that have no finished one, unfinished files and copies, the weights
        that workers shared, and the workers' signs of life."""
        for folder in self.path.glob("*/*/attempts"):
            Manifest(folder.parents[1].name, folder.parent).sweep()
        heartbeat.remove_all(self.path, self.remote)
        shutil.rmtree(self.path / CAST, ignore_errors=True)
        for folder in self.path.glob(f"published/*/*{UNFINISHED}"):
            shutil.rmtree(folder, ignore_errors=True)
        for root, folders, names in os.walk(self.path):
            # An export may be at work beside this run.
            folders[:] = [name for name in folders if name not in ("units", "exports")]
            for name in names:
                if name.startswith(PARTIAL):
                    Path(root, name).unlink(missing_ok=True)

    @contextmanager
    def _file_lock(self) -> Iterator[None]:
        path, lock = self.path / HOLDER, FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
            write_text(path, Beat.here().text())
            pulse = Pulse(lambda beat: write_text(path, beat.text()), PAUSE)
        except Timeout:
            try:
                body = read_json_object(path)
                holder = f"process {body['pid']} on {body['host']}"
            except (OSError, ValueError, KeyError):
                holder = "another process"
            raise StorageError(
                f"{self.display()} is in use by {holder}; wait for it or name another --run-dir"
            ) from None
        except OSError as error:
            lock.release()
            raise StorageError(
                f"{self.display()} cannot be written ({error.strerror or error}); check its permissions, or copy it "
                "and name the copy as --run-dir"
            ) from None
        try:
            yield
        finally:
            pulse.close()
            path.unlink(missing_ok=True)
            lock.release()

    def log(self, entry: Mapping[str, Plain]) -> None:
        """Append one line to log.jsonl, where reports look up wall times. Nothing else depends on it."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(canonical(entry) + "\n")
        self.upload("log.jsonl")

    def log_entries(self) -> Iterator[dict[str, Any]]:
        """The entries of log.jsonl that name a stage, its fingerprint and its wall time. Torn lines are skipped."""
        path = self.path / "log.jsonl"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and entry.keys() >= ENTRY and isinstance(entry["wall"], int | float):
                yield entry

    def record_identity(self, stage: str, fingerprint: str, identity: Plain) -> None:
        """Write what a fingerprint is the digest of, once, so that a later change can be shown field by field."""
        name = f"{stage}/{fingerprint[:16]}/identity.json"
        if _identity(self.path / name) is None:
            self.write(name, json.dumps(identity, indent=1, sort_keys=True))

    def identities(self, stage: str) -> list[dict[str, Plain]]:
        """The recorded identities of the stage, newest first. What is not as it was written is left out."""
        paths = sorted((self.path / stage).glob("*/identity.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        return [identity for path in paths if (identity := _identity(path)) is not None]


def _identity(path: Path) -> dict[str, Plain] | None:
    """A recorded identity; None if there is none that can be read."""
    try:
        return read_json_object(path)
    except (FileNotFoundError, ValueError):
        return None
