"""One process's open worker, called with one unit's key at a time: the same in an actor and in one's own process.

A worker that has `relieve(key, error)` is asked when a unit fails: if it has made itself smaller (memory was short),
the unit is tried again here at once, and counts as not failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Desk:
    """Keeps the worker class that it was last told to open."""

    def __init__(self) -> None:
        self._opened: tuple[object, Any] | None = None

    def open(self, worker: Callable[[Any], Any], context: Any) -> None:
        """Open the worker class with that context, unless it is the one that is open."""
        wanted = (worker.__module__, worker.__qualname__, context)
        if self._opened is None or self._opened[0] != wanted:
            self._opened = None
            self._opened = (wanted, worker(context))

    def do(self, key: str) -> Any:
        """What the open worker returns for the key."""
        assert self._opened is not None, "no worker is open"
        worker = self._opened[1]
        while True:
            try:
                return worker(key)
            except Exception as error:
                relieve = getattr(worker, "relieve", None)
                if relieve is None or not relieve(key, error):
                    raise
