"""Why units failed the last time: `failures/<unit>.json` in a stage's folder, until the unit is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adatsq_pipe.storage.files import read_json_object
from adatsq_pipe.storage.fingerprint import list_names


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The last failure of a unit. Its `reason` is a traceback; `when` is in Unix seconds."""

    unit: str
    host: str
    reason: str
    when: float

    @property
    def error(self) -> str:
        """The last line of the traceback; empty if there is none."""
        lines = self.reason.strip().splitlines()
        return lines[-1] if lines else ""


def failures_of(stage: Path) -> list[Failure]:
    """The failures that a stage's folder records, by unit. What cannot be read is left out."""
    root, found = stage / "failures", list[Failure]()
    for name in list_names(root):
        path = root / name
        try:
            body, when = read_json_object(path), path.stat().st_mtime
            unit = name.removesuffix(".json")
            found.append(Failure(unit=unit, host=str(body.get("host", "")), reason=str(body["reason"]), when=when))
        except (OSError, ValueError, KeyError):
            continue
    return sorted(found, key=lambda failure: failure.unit)
