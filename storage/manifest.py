"""Finished units of one stage: a marker per unit, written last, that vouches for the unit's files.

Layout below the stage's folder: `markers/<unit>.json`, and the bytes in `units/<unit>/`. A unit without a sound
marker is not done, whatever lies in its folder. Markers are moved into place whole, and carry a digest of themselves.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from adatsq_pipe.storage.arrays import parts
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.files import write_text
from adatsq_pipe.storage.fingerprint import digest, file_digest, files_below

COMPLETE = "complete"
"""The unit that says the whole stage is finished."""


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What a finished unit vouches for: `files` maps a name to (bytes, SHA-256); `value` is its small result."""

    unit: str
    files: Mapping[str, tuple[int, str]]
    value: Any = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    host: str = ""

    @property
    def digest(self) -> str:
        """Identity of the result, free of times and hosts."""
        return digest({"files": {name: entry[1] for name, entry in self.files.items()}, "value": self.value})


@lru_cache(maxsize=8192)
def _parsed(path: Path, stamp: tuple[int, int, int]) -> Marker | None:
    """The marker in the file `path` as of `stamp` (inode, mtime, size); None if it is not as it was written."""
    try:
        body = json.loads(path.read_text())
        own = body.pop("self")
        if own != digest(body):
            return None
        files = {name: (int(size), str(sha)) for name, (size, sha) in body.pop("files").items()}
        return Marker(files=files, **body)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Manifest:
    """The finished units of `stage` below `folder`."""

    stage: str
    folder: Path

    def unit_folder(self, unit: str) -> Path:
        return self.folder / "units" / unit

    def _marker(self, unit: str) -> Path:
        return self.folder / "markers" / f"{unit}.json"

    def open_unit(self, unit: str) -> Path:
        """An empty folder for the unit's bytes; what an unfinished try left there is removed."""
        folder = self.unit_folder(unit)
        self._marker(unit).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def commit(self, unit: str, *, value: object = None, seconds: Mapping[str, float] | None = None) -> Marker:
        """Vouch for everything in the unit's folder; the marker is the last thing written."""
        folder = self.unit_folder(unit)
        files = {
            str(path.relative_to(folder)): (path.stat().st_size, file_digest(path)) for path in files_below(folder)
        }
        marker = Marker(unit=unit, files=files, value=value, seconds=dict(seconds or {}), host=socket.gethostname())
        body: dict[str, Any] = {
            "unit": unit,
            "files": files,
            "value": value,
            "seconds": marker.seconds,
            "host": marker.host,
        }
        write_text(self._marker(unit), json.dumps({**body, "self": digest(body)}, indent=1))
        return marker

    def done(self, unit: str) -> bool:
        """Whether a sound marker stands and its files are there at their sizes (contents: see `verify`)."""
        try:
            marker = self.read(unit)
        except (DamagedUnit, KeyError):
            return False
        return not self._wrong_sizes(marker)

    def read(self, unit: str) -> Marker:
        """The unit's marker. KeyError if there is none, DamagedUnit if it cannot be trusted."""
        path = self._marker(unit)
        try:
            stat = path.stat()
            marker = _parsed(path, (stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except FileNotFoundError:
            raise KeyError(f"unit {unit!r} of stage {self.stage} is not done") from None
        if marker is None or marker.unit != unit:
            raise DamagedUnit(self.stage, unit, f"its marker {path} is not readable as written")
        return marker

    def _wrong_sizes(self, marker: Marker, names: Iterable[str] | None = None) -> list[str]:
        folder, wrong = self.unit_folder(marker.unit), []
        for name in marker.files if names is None else names:
            size, _ = marker.files[name]
            path = folder / name
            if not path.is_file():
                wrong.append(f"{path} is missing")
            elif path.stat().st_size != size:
                wrong.append(f"{path} has {path.stat().st_size} bytes, its marker says {size}")
        return wrong

    def verify(self, unit: str, *, tensors: Sequence[str] | None = None) -> Marker:
        """The unit's marker, after every file it vouches for was hashed again. Raises DamagedUnit.

        With `tensors`, of a unit's arrays only those named are hashed: for who reads one array of a large unit.
        """
        marker = self.read(unit)
        if tensors is None:
            self._compare(marker, list(marker.files))
        else:
            own = [name for name in marker.files if name.count("/") < 2]
            self._compare(marker, own)
            wanted = parts(self.unit_folder(unit), tensors)
            self._compare(marker, [name for name in marker.files if name.startswith(wanted)])
        return marker

    def _compare(self, marker: Marker, names: list[str]) -> None:
        """Hash the named files of a unit. Raises DamagedUnit."""
        wrong = self._wrong_sizes(marker, names)
        if not wrong:
            folder = self.unit_folder(marker.unit)
            wrong = [
                f"{folder / name} does not have the digest its marker vouches for"
                for name in names
                if file_digest(folder / name) != marker.files[name][1]
            ]
        if wrong:
            raise DamagedUnit(self.stage, marker.unit, wrong[0])

    def withdraw(self, unit: str) -> None:
        """Take back what the unit vouched for, and that the stage is complete: both will be done again."""
        self._marker(unit).unlink(missing_ok=True)
        self._marker(COMPLETE).unlink(missing_ok=True)

    def discard(self, unit: str) -> None:
        """Remove a unit that nothing needs any more: the marker first, then the bytes."""
        self._marker(unit).unlink(missing_ok=True)
        shutil.rmtree(self.unit_folder(unit), ignore_errors=True)

    def units(self) -> Iterator[str]:
        """Names that have a marker file, sound or not, in order; the stage's own mark is left out."""
        root = self.folder / "markers"
        for path in files_below(root) if root.is_dir() else []:
            name = str(path.relative_to(root).with_suffix(""))
            if path.suffix == ".json" and name != COMPLETE:
                yield name
