"""A worker whose units sleep instead of computing. Ray's processes import this, so it brings no torch along."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Nap:
    seconds: float


class Sleeper:
    """Sleeps as long as the unit's forwards would take on a GPU."""

    def __init__(self, nap: Nap) -> None:
        self.nap = nap

    def __call__(self, key: str) -> None:
        time.sleep(self.nap.seconds)


class Evaluation(Sleeper):
    """As the search's evaluations: a second one waits at the actor already."""

    ahead: ClassVar[int] = 2
