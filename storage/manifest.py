"""Finished units of one stage: a marker per unit, written last, that vouches for the unit's files.

Below the stage's folder, `markers/<unit>.json` is the marker and `units/<unit>/` the bytes. A unit without a valid
marker is not done, whatever its folder holds. A marker appears whole and carries a digest of itself.
A process writes to `attempts/<process>/<unit>/` and renames that folder when it is complete, so that two processes
never share one. `failures/<unit>.json` holds the reason of the last failure until the unit is done.
In a run directory at a URL the folder is a mirror: bytes are uploaded before the marker, and downloaded when read.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adatsq_pipe.storage import parts
from adatsq_pipe.storage.arrays import file_prefixes
from adatsq_pipe.storage.damage import DamageNotes
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.failures import Failure, failures_of
from adatsq_pipe.storage.files import Stamp, file_size, write_text
from adatsq_pipe.storage.fingerprint import Plain, file_digest, file_digest_once, list_files, list_names
from adatsq_pipe.storage.marker import Marker, read_marker
from adatsq_pipe.storage.pack import PACK
from adatsq_pipe.storage.parts import PARTS
from adatsq_pipe.storage.remote import Remote

COMPLETE = "complete"
"""The unit whose marker says that the stage is finished; its value maps each of the stage's units to its digest."""


@dataclass(frozen=True)
class Manifest:
    """The finished units of `stage` in `folder`, which is part of a mirror if there is a `remote`."""

    stage: str
    folder: Path
    remote: Remote | None = None

    @property
    def notes(self) -> DamageNotes:
        """What `verify` found."""
        return DamageNotes(self.folder, self.remote)

    def unit_folder(self, unit: str) -> Path:
        """The folder of the unit's bytes, whether it exists or not."""
        return self.folder / "units" / unit

    def attempt_folder(self, unit: str) -> Path:
        """The folder where this process writes the unit."""
        return self.folder / "attempts" / f"{socket.gethostname()}-{os.getpid()}" / unit

    def _marker(self, unit: str) -> Path:
        return self.folder / "markers" / f"{unit}.json"

    def _failure(self, unit: str) -> Path:
        return self.folder / "failures" / f"{unit}.json"

    def _names(self, *paths: Path) -> list[str]:
        """The store's names of files of the mirror."""
        assert self.remote is not None
        return [str(path.relative_to(self.remote.local)) for path in paths]

    def _remove(self, *paths: Path) -> None:
        """Remove files from the folder and from the store."""
        if self.remote is not None:
            self.remote.remove(self._names(*paths))
        for path in paths:
            path.unlink(missing_ok=True)

    def open_unit(self, unit: str) -> Path:
        """An empty folder to write the unit's bytes to. Removes what an earlier attempt of this process left."""
        folder = self.attempt_folder(unit)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def commit(
        self,
        unit: str,
        *,
        value: Plain = None,
        seconds: Mapping[str, float] | None = None,
        micro_batch: Mapping[str, int] | None = None,
        peak: int = 0,
    ) -> Marker:
        """Move the attempt to the unit's place, then write its marker.

        If the unit is done already, its bytes stay and the attempt is removed: both hold the same result.
        """
        attempt, folder = self.attempt_folder(unit), self.unit_folder(unit)
        if self.done(unit):
            shutil.rmtree(attempt)
            _prune(attempt.parent)
            return self.read(unit)
        files = {
            str(path.relative_to(attempt)): (path.stat().st_size, file_digest(path)) for path in list_files(attempt)
        }
        marker = Marker(
            unit=unit,
            files=files,
            value=value,
            seconds=dict(seconds or {}),
            host=socket.gethostname(),
            micro_batch=dict(micro_batch) if micro_batch else None,
            peak=peak,
        )
        _move(attempt, folder)
        if self.remote is not None:
            self.remote.upload(self._names(*(folder / name for name in files)))
        write_text(self._marker(unit), marker.to_json())
        if self.remote is not None:
            self.remote.upload(self._names(self._marker(unit)))
        if self._failure(unit).exists():
            self._remove(self._failure(unit))
        return marker

    def fail(self, unit: str, reason: str) -> None:
        """Record why an attempt at the unit failed, and remove what it wrote."""
        write_text(self._failure(unit), json.dumps({"host": socket.gethostname(), "reason": reason}, indent=1))
        if self.remote is not None:
            self.remote.upload(self._names(self._failure(unit)))
        shutil.rmtree(self.attempt_folder(unit), ignore_errors=True)

    def last_failures(self) -> list[Failure]:
        """The last failures of units that have not been done since. At a URL, as they were last downloaded."""
        return failures_of(self.folder)

    def failures(self) -> dict[str, str]:
        """Their reasons by unit. The last line of a reason is the error."""
        return {failure.unit: failure.reason for failure in self.last_failures()}

    def times(self) -> list[float]:
        """When the units' markers were written (Unix seconds), rising. In a store, as far as its listing says so."""
        folder = self.folder / "markers"
        if self.remote is not None:
            prefix = self._names(folder)[0]
            known = self.remote.modified
            return sorted(known[name] for name in self.remote.list_prefix(prefix) if name in known)
        found = list[float]()
        for name in list_names(folder):
            with suppress(FileNotFoundError):
                found.append(os.stat(f"{folder}/{name}").st_mtime)
        return sorted(found)

    def done(self, unit: str) -> bool:
        """Whether the unit has a valid marker and its files have their sizes. `verify` checks their contents.

        In a store it is enough that the marker exists: it was uploaded last, and whole.
        """
        if self.remote is not None:
            return self.remote.exists(self._names(self._marker(unit))[0])
        try:
            marker = self.read(unit)
        except (DamagedUnit, KeyError):
            return False
        return not self._wrong_sizes(marker)

    def missing(self, units: Sequence[str]) -> list[str]:
        """Those of `units` that are not done, in the same order, before workers are started on them.

        In a store, markers are listed in one request, and not again if the whole store was listed just before.
        """
        if self.remote is None:
            return [unit for unit in units if not self.done(unit)]
        finished = set(self.units(refresh=not self.remote.is_current))
        self.remote.invalidate()
        return [unit for unit in units if unit not in finished]

    def markers(self) -> dict[str, Marker]:
        """The markers of all units, sorted by unit. From a store they are downloaded in one request."""
        units = list(self.units(refresh=True))
        if self.remote is not None:
            self.remote.download(self._names(*map(self._marker, units)))
        return {unit: self.read(unit) for unit in units}

    def read(self, unit: str, stamp: Stamp | None = None) -> Marker:
        """The unit's marker. Raises KeyError if there is none, DamagedUnit if it is not as it was written.

        `stamp` is that of the marker's file, if it is known already.
        """
        path = f"{self.folder}/markers/{unit}.json"
        if self.remote is not None and self.remote.download(self._names(self._marker(unit))):
            self._marker(unit).unlink(missing_ok=True)
        try:
            marker = read_marker(path, stamp)
        except FileNotFoundError:
            raise KeyError(f"unit {unit!r} of stage {self.stage} is not done") from None
        if marker is None or marker.unit != unit:
            raise DamagedUnit(self.stage, unit, f"its marker {path} is not as it was written")
        return marker

    def _wrong_sizes(self, marker: Marker, names: Iterable[str] | None = None) -> list[str]:
        """What is wrong with the sizes of the unit's files (or only `names`), as messages."""
        folder, wrong = f"{self.folder}/units/{marker.unit}", []  # texts: Path objects would take most of the time
        size_of = file_size if self.remote is None else self._stored_size
        for name in marker.files if names is None else names:
            size, path = marker.files[name][0], f"{folder}/{name}"
            actual = size_of(path)
            if actual is None:
                wrong.append(f"{path} is missing")
            elif actual != size:
                wrong.append(f"{path} has {actual} bytes, its marker says {size}")
        return wrong

    def _stored_size(self, path: str) -> int | None:
        """Bytes of the store's file at a path of the mirror; None if it is missing."""
        assert self.remote is not None
        name = self._names(Path(path))[0]
        return self.remote.sizes[name] if self.remote.exists(name) else None

    def local_folder(self, unit: str) -> Path:
        """The finished unit's folder, with all its files downloaded but not hashed: for reports, and after `verify`."""
        if self.remote is not None:
            folder = self.unit_folder(unit)
            self.remote.download(self._names(*(folder / name for name in self.read(unit).files)))
        return self.unit_folder(unit)

    def verify(self, unit: str, *, tensors: Sequence[str] | None = None, once: bool = False) -> Marker:
        """The unit's marker, after hashing every file that it vouches for. Raises KeyError, DamagedUnit.

        With `tensors`, only these of the unit's arrays are hashed, where each has a digest of its own: for reading a
        few arrays of a large unit. With `once`, a file that this process has hashed is hashed again only if it was
        written since.
        """
        marker, folder = self.read(unit), self.unit_folder(unit)
        if tensors is None or (PACK in marker.files and PARTS not in marker.files):
            self._compare(marker, list(marker.files), once)
        elif PACK in marker.files:
            self._compare(marker, [name for name in marker.files if name != PACK], once)
            self._compare(marker, [PACK], once, lambda: bool(parts.altered(folder, tensors, once=once)))
        else:
            self._compare(marker, [name for name in marker.files if name.count("/") < 2], once)
            prefixes = file_prefixes(folder, tensors)
            self._compare(marker, [name for name in marker.files if name.startswith(prefixes)], once)
        return marker

    def _compare(
        self, marker: Marker, names: list[str], once: bool, is_altered: Callable[[], bool] | None = None
    ) -> None:
        """Compare the named files of a unit with its marker, by size and digest. Raises DamagedUnit.

        `is_altered` stands in for the digest of a single file. A file that differs in the mirror is downloaded once
        more before the unit counts as damaged.
        """

        def find(names: list[str]) -> list[str]:
            return self._altered(marker, names, once) if is_altered is None else names if is_altered() else []

        folder = self.unit_folder(marker.unit)
        wrong = self._wrong_sizes(marker, names)
        if not wrong:
            if self.remote is not None:
                self.remote.download(self._names(*(folder / name for name in names)))
            altered = find(names)
            if altered and self.remote is not None:
                self.remote.download(self._names(*(folder / name for name in altered)), refresh=True)
                altered = find(altered)
            wrong = [f"{folder / name} does not have the digest in its marker" for name in altered]
        if wrong:
            raise DamagedUnit(self.stage, marker.unit, wrong[0])

    def _altered(self, marker: Marker, names: list[str], once: bool) -> list[str]:
        folder = self.unit_folder(marker.unit)
        hashed = file_digest_once if once else file_digest
        return [name for name in names if hashed(folder / name) != marker.files[name][1]]

    def withdraw(self, unit: str) -> None:
        """Remove the unit's marker and the stage's COMPLETE, so that both are computed again."""
        self._remove(self._marker(unit), self._marker(COMPLETE))
        self.notes.remove(unit)

    def vouched(self) -> list[str]:
        """All that the folder's markers vouch for, sorted, COMPLETE first: units whose marker is lost too, if the stage
        is marked finished."""
        try:
            complete = self.read(COMPLETE)
        except DamagedUnit:
            return [COMPLETE, *self.units()]
        except KeyError:
            return list(self.units())
        return [COMPLETE, *sorted({*self.units(), *complete.value})]

    def discard(self, unit: str) -> None:
        """Remove a unit that is no longer needed: the marker first, then the bytes."""
        self._remove(self._marker(unit))
        folder = self.unit_folder(unit)
        if self.remote is not None:
            self.remote.remove(self.remote.list_prefix(str(folder.relative_to(self.remote.local))))
        shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed processes left in `attempts/`. Call it only with the run directory's lock held."""
        shutil.rmtree(self.folder / "attempts", ignore_errors=True)

    def units(self, *, refresh: bool = False) -> Iterator[str]:
        """Units that have a marker, valid or damaged, sorted; COMPLETE is left out.

        From a store: those of the last listing, or of a new one if `refresh` is set (other processes write to it too).
        """
        root = self.folder / "markers"
        if self.remote is not None:
            prefix = self._names(root)[0]
            if refresh:
                self.remote.refresh(prefix)
            names = [name.removeprefix(f"{prefix}/") for name in self.remote.list_prefix(prefix)]
        else:
            names = list_names(root)
        for name in sorted(names):
            unit = name.removesuffix(".json")
            if unit != name and unit != COMPLETE:
                yield unit


def _prune(folder: Path) -> None:
    """Remove `folder` and its parents up to `attempts`, as far as they are empty."""
    with suppress(OSError):
        while folder.name != "attempts":
            folder.rmdir()
            folder = folder.parent
        folder.rmdir()


def _move(attempt: Path, folder: Path) -> None:
    """Replace `folder` with the folder `attempt`. Two processes that race leave the same bytes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(100):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(attempt, folder)
            _prune(attempt.parent)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise OSError(errno.EEXIST, "another process keeps writing to it", str(folder))
