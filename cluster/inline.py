"""The executor that needs nothing: everything in this process, one unit after another. For debuggers and small runs.

A unit that fails is not tried again (it would fail again, here), but the others are done first.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from adatsq_pipe.cluster.desk import Desk
from adatsq_pipe.cluster.errors import Stopped
from adatsq_pipe.cluster.ledger import Ledger


class Inline:
    """Runs units here, in the order given."""

    def __init__(self) -> None:
        self.stopping = False
        self._desk = Desk()

    def stop(self) -> None:
        """Finish the unit in hand, then raise Stopped."""
        self.stopping = True

    def stream(self, worker: Callable[[Any], Any], context: Any, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
        ledger = Ledger(retries=0)
        for key in keys:
            if self.stopping:
                raise Stopped
            self._desk.open(worker, context)
            try:
                result = self._desk.do(key)
            except Exception as error:
                ledger.failed(key, error, traceback.format_exc())
            else:
                ledger.done()
                yield key, result
        ledger.settle()
        if self.stopping:
            raise Stopped

    def conduct(self, drive: Callable[..., None], context: Any, report: Callable[[int, int], None]) -> None:
        drive(self, context, report)

    def close(self) -> None:
        """Nothing is held."""
