"""RunSettings: the parsed tables of a run, one frozen instance of each, and ModelRef, the model that they are for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adatsq_pipe.stages.base.settings import Settings, SettingsT
from adatsq_pipe.storage.fingerprint import Plain


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """The folder of the full-precision pipeline, and the digest of the files in it."""

    path: Path
    digest: str = ""


class RunSettings:
    """The settings of a run by their type: `settings[DataSettings].batch`. Parsed once, immutable, small to send."""

    def __init__(self, tables: Iterable[Settings]) -> None:
        self._tables = {type(table): table for table in tables}

    def __getitem__(self, kind: type[SettingsT]) -> SettingsT:
        found = self._tables[kind]
        assert isinstance(found, kind)
        return found

    def __iter__(self) -> Iterator[Settings]:
        return iter(self._tables.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunSettings) and self._tables == other._tables

    def __hash__(self) -> int:
        return hash(tuple(self._tables))

    def replaced(self, *tables: Settings) -> RunSettings:
        """These settings with other instances of some tables."""
        return RunSettings([*self._tables.values(), *tables])

    def identity(self, *kinds: type[Settings]) -> dict[str, Plain]:
        """What bears identity in the tables of these kinds, by table name."""
        return {kind.table: self[kind].identity() for kind in kinds}
