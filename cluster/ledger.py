"""What becomes of units that fail: tried again, set aside while the others go on, or the end of the stream.

The errors of other rooms say by an attribute what they are worth: `hopeless` ones end the stream at once (every unit
would meet them), `certain` ones are not tried again (they would come back) and reach the user as they are.
"""

from __future__ import annotations

import errno
from collections import Counter

from adatsq_pipe.cluster.errors import UnitFailed

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ALL_BAD = 3
"""So many units given up and none done: the rest is not tried."""


class Ledger:
    """Counts the failures of one stream's units. `retries` is how often one is tried again."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._failures: Counter[str] = Counter()
        self._done = 0
        self._given_up: dict[str, tuple[BaseException, str]] = {}

    def done(self) -> None:
        self._done += 1

    def failed(self, key: str, error: BaseException, traceback: str) -> bool:
        """Whether the unit is to be tried again. Raises what makes going on useless."""
        if getattr(error, "hopeless", False) or (isinstance(error, OSError) and error.errno in FULL):
            raise error
        self._failures[key] += 1
        if self._failures[key] <= self._retries and not getattr(error, "certain", False):
            return True
        self._given_up[key] = (error, traceback)
        if not self._done and len(self._given_up) >= ALL_BAD:
            self.settle()
        return False

    def settle(self) -> None:
        """Raise for what was given up: the error itself if it speaks to the user, else with the unit's name."""
        for key, (error, traceback) in sorted(self._given_up.items()):
            if getattr(error, "certain", False):
                raise error
            others = tuple(sorted(set(self._given_up) - {key}))
            raise UnitFailed(key, self._failures[key], f"{type(error).__name__}: {error}", traceback, others) from error
