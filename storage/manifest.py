"""Finished units of one stage: a marker per unit, written last, that vouches for the unit's files.

Layout below the stage's folder: `markers/<unit>.json`, and the bytes in `units/<unit>/`. A unit without a sound
marker is not done, whatever lies in its folder. Markers are moved into place whole, and carry a digest of themselves.
A try at a unit is written to `attempts/<process>/<unit>/` and moved when it is whole, so two tries do not meet; of one
that failed, `failures/<unit>.json` keeps the reason until the unit is done. In a run directory at a URL all this is a
mirror: files are sent before the marker is, and fetched when they are read.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from adatsq_pipe.storage.arrays import file_prefixes
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.files import is_safe_relative, write_text
from adatsq_pipe.storage.fingerprint import digest, digest_of_json, file_digest, list_files, list_names
from adatsq_pipe.storage.remote import Remote

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
    micro_batch: Mapping[str, int] | None = None
    """Samples at a time, `from` and `to`, where memory was short; it bears no identity, as in other batches only the
    last bits differ."""
    peak: int = 0
    """Most bytes of GPU memory allocated at once, the model's weights included; 0 on a CPU."""

    @property
    def digest(self) -> str:
        """Identity of the result, free of times and hosts."""
        return digest({"files": {name: entry[1] for name, entry in self.files.items()}, "value": self.value})


@lru_cache(maxsize=2**16)
def _parsed(path: str, stamp: tuple[int, int, int]) -> Marker | None:
    """The marker in the file `path` as of `stamp` (inode, mtime, size); None if it is not as it was written."""
    try:
        with open(path, "rb", buffering=0) as file:
            body = json.loads(file.read().decode())
        own = body.pop("self")
        if own != digest_of_json(body):
            return None
        files = {name: (int(size), str(sha)) for name, (size, sha) in body.pop("files").items()}
        if not all(map(is_safe_relative, (*files, body["unit"]))):
            return None
        return Marker(files=files, **body)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Manifest:
    """The finished units of `stage` below `folder`, which is a mirror if there is a `remote`."""

    stage: str
    folder: Path
    remote: Remote | None = None

    def unit_folder(self, unit: str) -> Path:
        """Where the unit's bytes are, or would be."""
        return self.folder / "units" / unit

    def attempt_folder(self, unit: str) -> Path:
        """Where this process works on the unit."""
        return self.folder / "attempts" / f"{socket.gethostname()}-{os.getpid()}" / unit

    def _marker(self, unit: str) -> Path:
        return self.folder / "markers" / f"{unit}.json"

    def _failure(self, unit: str) -> Path:
        return self.folder / "failures" / f"{unit}.json"

    def _names(self, *paths: Path) -> list[str]:
        """Names of files of the mirror, as the store has them."""
        assert self.remote is not None
        return [str(path.relative_to(self.remote.local)) for path in paths]

    def _remove(self, *paths: Path) -> None:
        """Remove files, here and there."""
        if self.remote is not None:
            self.remote.remove(self._names(*paths))
        for path in paths:
            path.unlink(missing_ok=True)

    def open_unit(self, unit: str) -> Path:
        """An empty folder to write the unit's bytes to; what this process left of an earlier try is removed."""
        folder = self.attempt_folder(unit)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def commit(
        self,
        unit: str,
        *,
        value: object = None,
        seconds: Mapping[str, float] | None = None,
        micro_batch: Mapping[str, int] | None = None,
        peak: int = 0,
    ) -> Marker:
        """Move what was written into the unit's place and vouch for it; the marker is the last thing written.

        If another process has finished the unit meanwhile, what it wrote stays: it is the same.
        """
        written, folder = self.attempt_folder(unit), self.unit_folder(unit)
        if self.done(unit):
            shutil.rmtree(written)
            _prune(written.parent)
            return self.read(unit)
        files = {
            str(path.relative_to(written)): (path.stat().st_size, file_digest(path)) for path in list_files(written)
        }
        marker = Marker(
            unit=unit, files=files, value=value, seconds=dict(seconds or {}), host=socket.gethostname(),
            micro_batch=micro_batch, peak=peak,
        )  # fmt: skip
        body: dict[str, Any] = {
            "unit": unit,
            "files": files,
            "value": value,
            "seconds": marker.seconds,
            "host": marker.host,
            **({"micro_batch": dict(micro_batch)} if micro_batch else {}),
            **({"peak": peak} if peak else {}),
        }
        _move(written, folder)
        if self.remote is not None:
            self.remote.upload(self._names(*(folder / name for name in files)))
        write_text(self._marker(unit), json.dumps({**body, "self": digest(body)}, indent=1))
        if self.remote is not None:
            self.remote.upload(self._names(self._marker(unit)))
        if self._failure(unit).exists():
            self._remove(self._failure(unit))
        return marker

    def fail(self, unit: str, reason: str) -> None:
        """Keep why a try at the unit failed, and drop what it wrote."""
        write_text(self._failure(unit), json.dumps({"host": socket.gethostname(), "reason": reason}, indent=1))
        if self.remote is not None:
            self.remote.upload(self._names(self._failure(unit)))
        shutil.rmtree(self.attempt_folder(unit), ignore_errors=True)

    def failures(self) -> dict[str, str]:
        """Units whose last try failed and why (the last line of the reason is the error)."""
        root, found = self.folder / "failures", {}
        for path in list_files(root) if root.is_dir() else []:
            try:
                found[str(path.relative_to(root).with_suffix(""))] = str(json.loads(path.read_text())["reason"])
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def done(self, unit: str) -> bool:
        """Whether a sound marker stands and its files are there at their sizes (contents: see `verify`).

        In a store a marker is sent last and whole, so that it is there is enough.
        """
        if self.remote is not None:
            return self.remote.exists(self._names(self._marker(unit))[0])
        try:
            marker = self.read(unit)
        except (DamagedUnit, KeyError):
            return False
        return not self._wrong_sizes(marker)

    def missing(self, units: Sequence[str]) -> list[str]:
        """Those of the units that are not done, before they are given to others.

        Markers in a store are listed, not asked for one by one, and not again if they just were.
        """
        if self.remote is None:
            return [unit for unit in units if not self.done(unit)]
        there = set(self.units(refresh=not self.remote.is_current))
        self.remote.invalidate()
        return [unit for unit in units if unit not in there]

    def markers(self) -> dict[str, Marker]:
        """Those of all units, in order. From a store they are fetched together."""
        units = list(self.units(refresh=True))
        if self.remote is not None:
            self.remote.download(self._names(*map(self._marker, units)))
        return {unit: self.read(unit) for unit in units}

    def read(self, unit: str) -> Marker:
        """The unit's marker. KeyError if there is none, DamagedUnit if it cannot be trusted."""
        path = f"{self.folder}/markers/{unit}.json"
        if self.remote is not None and self.remote.download(self._names(self._marker(unit))):
            self._marker(unit).unlink(missing_ok=True)
        try:
            stat = os.stat(path)
            marker = _parsed(path, (stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except FileNotFoundError:
            raise KeyError(f"unit {unit!r} of stage {self.stage} is not done") from None
        if marker is None or marker.unit != unit:
            raise DamagedUnit(self.stage, unit, f"its marker {path} is not readable as written")
        return marker

    def _wrong_sizes(self, marker: Marker, names: Iterable[str] | None = None) -> list[str]:
        folder, wrong = self.unit_folder(marker.unit) if marker.files else self.folder, []
        for name in marker.files if names is None else names:
            size, path = marker.files[name][0], folder / name
            found = self._size(path)
            if found is None:
                wrong.append(f"{path} is missing")
            elif found != size:
                wrong.append(f"{path} has {found} bytes, its marker says {size}")
        return wrong

    def _size(self, path: Path) -> int | None:
        """Bytes of a file, there if this is a mirror; None if it is missing."""
        if self.remote is None:
            return path.stat().st_size if path.is_file() else None
        name = self._names(path)[0]
        return self.remote.sizes[name] if self.remote.exists(name) else None

    def local_folder(self, unit: str) -> Path:
        """The finished unit's folder with all its files here, not hashed: for reports and what was just verified."""
        if self.remote is not None:
            folder = self.unit_folder(unit)
            self.remote.download(self._names(*(folder / name for name in self.read(unit).files)))
        return self.unit_folder(unit)

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
            wanted = file_prefixes(self.unit_folder(unit), tensors)
            self._compare(marker, [name for name in marker.files if name.startswith(wanted)])
        return marker

    def _compare(self, marker: Marker, names: list[str]) -> None:
        """Hash the named files of a unit. Raises DamagedUnit."""
        folder = self.unit_folder(marker.unit)
        wrong = self._wrong_sizes(marker, names)
        if not wrong:
            if self.remote is not None:
                self.remote.download(self._names(*(folder / name for name in names)))
            other = self._differing(marker, names)
            if other and self.remote is not None:
                self.remote.download(self._names(*(folder / name for name in other)), refresh=True)
                other = self._differing(marker, other)
            wrong = [f"{folder / name} does not have the digest its marker vouches for" for name in other]
        if wrong:
            raise DamagedUnit(self.stage, marker.unit, wrong[0])

    def _differing(self, marker: Marker, names: list[str]) -> list[str]:
        folder = self.unit_folder(marker.unit)
        return [name for name in names if file_digest(folder / name) != marker.files[name][1]]

    def withdraw(self, unit: str) -> None:
        """Take back what the unit vouched for, and that the stage is complete: both will be done again."""
        self._remove(self._marker(unit), self._marker(COMPLETE))

    def discard(self, unit: str) -> None:
        """Remove a unit that nothing needs any more: the marker first, then the bytes."""
        self._remove(self._marker(unit))
        folder = self.unit_folder(unit)
        if self.remote is not None:
            self.remote.remove(self.remote.list_prefix(str(folder.relative_to(self.remote.local))))
        shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed tries left. For who holds the run directory's lock: nobody else is at work then."""
        shutil.rmtree(self.folder / "attempts", ignore_errors=True)

    def units(self, *, refresh: bool = False) -> Iterator[str]:
        """Names that have a marker file, sound or not, in order; the stage's own mark is left out.

        Of a store, those that were there when it was last listed, or `refresh`: other processes may have finished some.
        """
        root = self.folder / "markers"
        if self.remote is not None:
            place = str(root.relative_to(self.remote.local))
            if refresh:
                self.remote.refresh(place)
            found = [name.removeprefix(f"{place}/") for name in self.remote.list_prefix(place)]
        else:
            found = list_names(root)
        for name in sorted(found):
            unit = name.removesuffix(".json")
            if unit != name and unit != COMPLETE:
                yield unit


def _prune(folder: Path) -> None:
    """Remove the folder and those above it in `attempts` that are empty: what is left there was never finished."""
    with suppress(OSError):
        while folder.name != "attempts":
            folder.rmdir()
            folder = folder.parent
        folder.rmdir()


def _move(written: Path, folder: Path) -> None:
    """Put the folder `written` in the place of `folder`. Two who do so at once leave the same bytes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(100):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(written, folder)
            _prune(written.parent)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise OSError(errno.EEXIST, "another process keeps writing it", str(folder))
