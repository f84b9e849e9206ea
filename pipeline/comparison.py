"""What a comparison leaves beside its rows: which units its pictures are in, what was left out, and how it was made.

`compare.json` and `compare.parquet` are enough to write the page of a comparison again, without its settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter, ValidationError

from adatsq_pipe.pipeline.versions import versions
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.rundir import RunDir

FILE, ROWS = "compare.json", "compare.parquet"
"""Names of the files in the run directory."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A row that has no figures, and why. `failed` says that it was tried."""

    name: str
    bits: str
    refused: str
    failed: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the rows of `compare.parquet` came about."""

    model: str
    floor: str = ""
    """How far full precision is from itself, in one line; "" if it was not measured."""
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=versions)
    references: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of the full-precision draws, by that of the evaluation (`fingerprint` of a row)."""
    left_out: Sequence[LeftOut] = ()

    def write(self, run: RunDir) -> None:
        """Write `compare.json` in the run directory."""
        run.write(FILE, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def compared(run: RunDir) -> bool:
    """Whether the run directory holds a comparison. At a URL its files are downloaded."""
    if run.remote is not None:
        run.remote.download([FILE, ROWS], refresh=True)
    return (run.path / ROWS).is_file()


def read_comparison(run: RunDir) -> Comparison:
    """The comparison in a run directory. Raises StorageError if there is none that can be read."""
    again = f"; compare again with the same command (adatsq-pipe compare --run-dir {run.display()} ...): nothing that "
    again += "is done is computed again"
    try:
        return TypeAdapter(Comparison).validate_json((run.path / FILE).read_bytes())
    except FileNotFoundError:
        raise StorageError(f"{run.display(FILE)} does not exist{again}") from None
    except ValidationError as error:
        what = error.errors()[0]["msg"]
        raise StorageError(f"{run.display(FILE)} is not as it was written ({what}){again}") from None
