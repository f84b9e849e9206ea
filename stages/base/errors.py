"""Errors that stages raise for people to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    pass


class StageError(RuntimeError):
    """The work cannot go on as configured; the message says what was found and what to do. Everything done is kept."""

    certain: ClassVar[bool] = True
    """Trying again would find the same."""


class NotTaken(StageError):
    """The pipeline is of a kind that cannot be quantized; said before any work, with the reason."""
