"""What `verify` found damaged, kept beside the markers until the unit is withdrawn: a plan looks at sizes only.

`damage/<unit>.json` in a stage's folder says what is wrong with a unit whose marker is still there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adatsq_pipe.storage.files import read_json_object, write_text
from adatsq_pipe.storage.fingerprint import list_names
from adatsq_pipe.storage.remote import Remote

FOLDER = "damage"


@dataclass(frozen=True)
class DamageNotes:
    """The notes of one stage's folder, which is part of a mirror if there is a `remote`."""

    folder: Path
    remote: Remote | None = None

    def _path(self, unit: str) -> Path:
        return self.folder / FOLDER / f"{unit}.json"

    def _name(self, unit: str) -> str:
        assert self.remote is not None
        return str(self._path(unit).relative_to(self.remote.local))

    def all(self) -> Mapping[str, str]:
        """What is wrong, by unit. A note that cannot be read still names its unit."""
        found = dict[str, str]()
        for unit in self._units():
            if self.remote is not None:
                self.remote.download([self._name(unit)])
            try:
                found[unit] = str(read_json_object(self._path(unit))["what"])
            except (OSError, ValueError, KeyError):
                found[unit] = "`verify` found it damaged"
        return found

    def _units(self) -> list[str]:
        if self.remote is None:
            names = list_names(self.folder / FOLDER)
        else:
            prefix = self._name("")[: -len(".json")]
            names = [name.removeprefix(prefix) for name in self.remote.list_prefix(prefix.rstrip("/"))]
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def add(self, unit: str, what: str) -> None:
        write_text(self._path(unit), json.dumps({"what": what}, indent=1))
        if self.remote is not None:
            self.remote.upload([self._name(unit)])

    def remove(self, unit: str) -> None:
        """Remove the note of a unit, if there is one, and the folders that it leaves empty."""
        path = self._path(unit)
        path.unlink(missing_ok=True)
        with suppress(OSError):
            while path.parent != self.folder:
                path = path.parent
                path.rmdir()
        if self.remote is not None and self._name(unit) in self.remote.sizes:
            self.remote.remove([self._name(unit)])
