"""Errors that stages raise for people to read."""

from __future__ import annotations

from typing import ClassVar


class StageError(RuntimeError):
    """The work cannot continue as configured; the message gives the reason and what to do. Finished units stay."""

    retryable: ClassVar[bool] = False
    """Another try would fail the same way."""


class NotTaken(StageError):
    """The pipeline is of a kind that cannot be quantized. Raised before any work, with the reason."""
