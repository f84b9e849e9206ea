"""Errors that stages raise for people to read."""

from __future__ import annotations

from typing import ClassVar


class StageError(RuntimeError):
    """The work cannot go on as configured; the message says what was found and what to do. Everything done is kept."""

    retryable: ClassVar[bool] = False
    """Another try would fail the same way."""


class NotTaken(StageError):
    """The pipeline is of a kind that cannot be quantized; said before any work, with the reason."""
