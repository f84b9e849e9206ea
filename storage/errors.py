"""Errors about stored bytes. Each names the file and the next step."""

from __future__ import annotations


class StorageError(RuntimeError):
    """A file or run directory cannot be used as it is; the message says why and what to do."""


class NoRun(StorageError):
    """A place that holds no run where one was named, or something else where a run is to be. Nothing was started."""


class NoTransformer(StorageError):
    """A valid pipeline folder without a transformer to quantize."""


class UnusableModel(StorageError):
    """A folder that is no pipeline, whose weights do not load or whose links lead nowhere. Nothing was started."""


class DamagedUnit(StorageError):
    """Bytes that a marker vouches for are missing, truncated or altered. The unit must be computed again."""

    fatal = True
    """Retrying does not help: every task that reads this unit would fail."""

    def __init__(self, stage: str, unit: str, what: str) -> None:
        super().__init__(stage, unit, what)
        self.stage, self.unit, self.what = stage, unit, what

    def __str__(self) -> str:
        return f"unit {self.unit!r} of stage {self.stage} is damaged: {self.what}"
