"""A worker whose units sleep instead of computing. Ray's processes import this, so it brings no torch along."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from adatsq_pipe.stages.allocation.batch_slices import read_key


@dataclass(frozen=True)
class Nap:
    """Seconds of a forward; of a search also its steps, and the captions of its slices by kind of unit."""

    seconds: float
    steps: int = 1
    samples: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Sleeper:
    """Sleeps as long as the unit's forwards would take on a GPU."""

    def __init__(self, nap: Nap) -> None:
        self.nap = nap

    def __call__(self, key: str) -> None:
        time.sleep(self.nap.seconds)


def forwards_of(nap: Nap, key: str) -> int:
    """Forwards of single captions in a unit of the search: one step of a path, or all steps of a rollout."""
    kind, _, place = read_key(key)
    return nap.samples[kind][place] * (nap.steps if kind == "rollout" else 1)


class Evaluation(Sleeper):
    """As the search's evaluations: a second one waits at the actor already."""

    queue_depth: ClassVar[int] = 2

    def __call__(self, key: str) -> None:
        time.sleep(self.nap.seconds * forwards_of(self.nap, key))
