"""What can be wrong with bytes at rest, as errors that name the file and the next step."""

from __future__ import annotations


class StorageError(RuntimeError):
    """A run directory cannot be used as it is; the message says why and what to do."""


class NoTransformer(StorageError):
    """A sound pipeline folder, of a kind that has no transformer to quantize."""


class DamagedUnit(StorageError):
    """Bytes that a marker vouches for are missing, truncated or altered; the unit must be done again."""

    fatal = True
    """Every unit that reads it would fail."""

    def __init__(self, stage: str, unit: str, what: str) -> None:
        super().__init__(stage, unit, what)
        self.stage, self.unit, self.what = stage, unit, what

    def __str__(self) -> str:
        return f"unit {self.unit!r} of stage {self.stage} is damaged: {self.what}"
