"""The models that a run publishes: pipeline folders that people take elsewhere.

The marker `published/<assemble>/<evaluate>.json` vouches for the files of the folder beside it, and for those of the
report that belongs to it. In a store the model is a copy, and model.json vouches for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adatsq_pipe.storage.files import read_json_object, write_text
from adatsq_pipe.storage.fingerprint import file_digest, list_names
from adatsq_pipe.storage.marker import Marker, read_marker
from adatsq_pipe.storage.remote import Remote

MODEL_JSON = "model.json"
"""In a store: the file that says which model is there, and vouches for its files."""
Files = Mapping[str, tuple[int, str]]
"""Bytes and SHA-256 by name."""


def files_of(folder: Path) -> dict[str, tuple[int, str]]:
    """What the files of a folder are now."""
    return {name: ((folder / name).stat().st_size, file_digest(folder / name)) for name in list_names(folder)}


def difference(folder: Path, files: Files, *, hashed_before: int | None) -> str:
    """The first file that is not what it was, with what is wrong; "" if all are.

    Files that were changed after `hashed_before` (mtime in nanoseconds) are hashed, with None all; of the others the
    size must do.
    """
    for name, (size, sha) in files.items():
        path = folder / name
        try:
            stat = path.stat()
            if stat.st_size != size:
                return f"{path} has {stat.st_size} bytes, its marker says {size}"
            if (hashed_before is None or stat.st_mtime_ns > hashed_before) and file_digest(path) != sha:
                return f"{path} does not have the digest in its marker"
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
    return ""


@dataclass(frozen=True)
class PublishedModel:
    """The published model in `folder`."""

    folder: Path

    @property
    def unit(self) -> str:
        """The fingerprints of its two stages, as the folders are named."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def _marker(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")

    def vouch(self, report: Path, names: Sequence[str]) -> None:
        """Write the marker: the folder's files, and those of the report that have these names."""
        value = {"report": {name: [size, sha] for name, (size, sha) in files_of(report).items() if name in names}}
        write_text(self._marker, Marker(unit=self.unit, files=files_of(self.folder), value=value).to_json())

    @property
    def vouched(self) -> bool:
        """Whether there is a marker. A run that was killed while it wrote the folder, or an older one, left none."""
        return self._marker.is_file()

    def doubt(self) -> None:
        """Make the marker older than any file, so that from now on all of them are hashed."""
        os.utime(self._marker, (0, 0))

    def damage(self, *, report: Path | None = None, thorough: bool = False) -> str:
        """What is wrong with its files, and with the `report` that belongs to it; "" if nothing is,
        or nothing vouches for them.

        Sizes are compared, and files that were changed after the marker are hashed; all are if it is to be `thorough`.
        """
        try:
            marker = read_marker(str(self._marker))
        except FileNotFoundError:
            return ""
        if marker is None or marker.unit != self.unit:
            return f"its marker {self._marker} is not as it was written"
        since = None if thorough else os.stat(self._marker).st_mtime_ns
        wrong = difference(self.folder, marker.files, hashed_before=since)
        if not wrong and report is not None:
            wrong = difference(report, marker.value["report"], hashed_before=since)
        return wrong


@dataclass(frozen=True)
class StoredModel:
    """The copy of a model below `model/` in a store; model.json beside it says of which fingerprints and files."""

    remote: Remote

    @property
    def named(self) -> dict[str, Any]:
        """What model.json says; empty if there is none that can be read."""
        try:
            return read_json_object(self.remote.local / MODEL_JSON)
        except (FileNotFoundError, ValueError):
            return {}

    def damage(self, *, thorough: bool = False) -> str:
        """What is wrong with its files; "" if nothing is, or nothing vouches for them. Sizes are compared, and digests
        too if it is to be `thorough`."""
        files: Files = self.named.get("files", {})
        for name, (size, sha) in files.items():
            stored = f"model/{name}"
            if not self.remote.exists(stored):
                return f"{self.remote.url}/{stored} is missing"
            if self.remote.sizes[stored] != size:
                return f"{self.remote.url}/{stored} has {self.remote.sizes[stored]} bytes, {MODEL_JSON} says {size}"
            if thorough and self.remote.digest(stored) != sha:
                return f"{self.remote.url}/{stored} does not have the digest in {MODEL_JSON}"
        return ""

    def doubt(self) -> None:
        """Forget what it is, so that the next run uploads it again."""
        self.remote.remove([MODEL_JSON])
        (self.remote.local / MODEL_JSON).unlink(missing_ok=True)
