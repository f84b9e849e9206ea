"""What a stage's markers say, for a plan, and `seen.json`: what was read from them, so that they are not opened again.

The markers alone say what is done. An entry of `seen.json` counts only for a marker that is there and whose inode, time
and size are those of the entry; every other marker is opened. The file may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.files import Stamp, file_size, stamp_of, write_bytes
from adatsq_pipe.storage.manifest import COMPLETE, Manifest
from adatsq_pipe.storage.marker import Marker

FILE = "seen.json"
SETTLED = 2 * 10**9
"""Age of a marker, in ns, from which its entry is kept: a younger one could be replaced within the same tick of the
file system's clock."""
WORTH = 256
"""Markers opened, above which the file is written, if they are also more than a tenth of all."""

Entry: TypeAlias = list[int]
"""Of a marker: inode, time in ns and bytes of its file; memory; the place of its unit's file names in `names`; their
bytes."""


@dataclass(frozen=True)
class Sight:
    """What is known of a unit that has a marker."""

    what: str = ""
    """What is wrong with the marker, or with the sizes of the unit's files; "" if nothing is."""
    size: int = 0
    """Bytes that the marker vouches for; 0 if something is wrong, and in a store."""
    memory: int = 0
    """Most bytes of main memory that the worker's process held; 0 where it is not known."""


@dataclass
class Seen:
    """What was read from markers."""

    names: list[list[str]] = field(default_factory=list)
    """The names of a unit's files, once for all units that have the same."""
    units: dict[str, Entry] = field(default_factory=dict)
    complete: tuple[list[int], str] | None = None
    """Inode, time and bytes of COMPLETE's marker, and the digest of the units that it lists."""

    def entry(self, stamp: Stamp, marker: Marker) -> Entry:
        names = list(marker.files)
        recent = self.names[-8:]
        if names not in recent:
            self.names.append(names)
        place = len(self.names) - 1 if names not in recent else len(self.names) - len(recent) + recent.index(names)
        return [*stamp, marker.resident, place, *(size for size, _ in marker.files.values())]

    def sight(self, folder: str, entry: Entry) -> Sight:
        """A unit with sound marker, after a look at the sizes of its files in `folder`."""
        for name, size in zip(self.names[entry[4]], entry[5:], strict=True):
            if file_size(f"{folder}/{name}") != size:
                return Sight("a file is missing or has the wrong size")
        return Sight("", sum(entry[5:]), entry[3])


def sights(manifest: Manifest) -> tuple[dict[str, Sight], bool]:
    """(what is known of every unit that has a marker, sorted; whether the stage is marked finished and every unit that
    the mark lists has a marker). In a store markers are listed and not read."""
    units = list(manifest.units())
    if manifest.remote is not None:
        return dict.fromkeys(units, Sight()), _vouched(manifest) <= {*units}
    seen, found, opened, settled = _load(manifest), dict[str, Sight](), 0, time.time_ns() - SETTLED
    before, seen.units = seen.units, {}
    for unit in units:
        entry, stamp = before.get(unit), _stamp(manifest, unit)
        if stamp is None:  # it was withdrawn just now
            continue
        if entry is None or entry[:3] != [*stamp]:
            opened += 1
            try:
                entry = seen.entry(stamp, manifest.read(unit, stamp))
            except KeyError:
                continue
            except DamagedUnit as error:
                found[unit] = Sight(error.what)
                continue
        if entry[1] < settled:
            seen.units[unit] = entry
        found[unit] = seen.sight(f"{manifest.folder}/units/{unit}", entry)
    complete = _complete(manifest, seen, found, settled)
    if opened > max(WORTH, len(units) // 10):
        _save(manifest, seen)
    return found, complete


def _complete(manifest: Manifest, seen: Seen, found: Iterable[str], settled: int) -> bool:
    """Whether the stage is marked finished and all that it vouches for is `found`; what was read is put into `seen`."""
    stamp, names = _stamp(manifest, COMPLETE), _digest(found)
    if stamp is None:
        seen.complete = None
        return False
    if seen.complete is not None and seen.complete == ([*stamp], names):
        return True
    listed = _vouched(manifest)
    seen.complete = ([*stamp], _digest(sorted(listed))) if stamp[1] < settled else None
    return listed <= {*found}


def _vouched(manifest: Manifest) -> set[str]:
    """The units that the stage's mark lists; of a stage that has none, COMPLETE, which is no unit."""
    try:
        return {*manifest.read(COMPLETE).value}
    except (KeyError, DamagedUnit):
        return {COMPLETE}


def _digest(units: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(units).encode()).hexdigest()


def _stamp(manifest: Manifest, unit: str) -> Stamp | None:
    """The stamp of a unit's marker; None without one."""
    try:
        return stamp_of(f"{manifest.folder}/markers/{unit}.json")
    except FileNotFoundError:
        return None


def _load(manifest: Manifest) -> Seen:
    """What was seen before; nothing if the file is not as it was written."""
    try:
        digest, _, text = (manifest.folder / FILE).read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest() == digest.decode():
            body = json.loads(text)
            mark = body["complete"]
            return Seen(body["names"], body["units"], (mark[0], mark[1]) if mark else None)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return Seen()


def _save(manifest: Manifest, seen: Seen) -> None:
    body = {"names": seen.names, "units": seen.units, "complete": seen.complete}
    text = json.dumps(body, separators=(",", ":")).encode()
    with suppress(OSError):  # a run directory that cannot be written is read all the same
        write_bytes(manifest.folder / FILE, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
