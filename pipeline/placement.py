"""How much of a GPU a worker takes: the model's weights, what a unit needs besides, and how many fit beside each other.

What units took is in their markers. Before a stage has units, the survey tells what its layers keep for a backward
pass; before there is a survey, a worker has a GPU to itself. Importing this brings in no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from adatsq_pipe.stages.architecture.memory import BYTES, by_block
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import ComputeSettings, DataSettings
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.storage.checkpoint import stored_sizes
from adatsq_pipe.storage.fingerprint import Plain

RUNTIME = 600 * 10**6
"""Bytes that a process takes of a GPU before it holds anything: driver, kernels, libraries."""
ROOM = 1.15
"""What an allocator takes, relative to the bytes requested of it at once."""
KEPT = 2.0
"""What a forward pass keeps for its backward pass, over the inputs and outputs of its linear layers: norms, attention,
what lies between them."""

MOST = 4
"""Workers of one GPU at most: more only wait for each other's kernels."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes of GPU memory that a worker of a stage takes; `basis` says how that is known."""

    weights: int
    unit: int
    basis: str

    @property
    def total(self) -> int:
        return int(ROOM * (self.weights + self.unit)) + RUNTIME


@dataclass(frozen=True, kw_only=True)
class Placement:
    """`workers` that share a GPU, and why so many."""

    workers: int
    need: Need | None
    memory: int

    @property
    def share(self) -> float:
        """Of a GPU, for each; rounded down, so that all of them fit."""
        return int(10_000 / self.workers) / 10_000

    def record(self) -> dict[str, Plain]:
        """As the run's log and report have it."""
        known = {"weights": self.need.weights, "unit": self.need.unit} if self.need else {}
        basis = self.need.basis if self.need else "nothing is measured yet"
        return {"workers_per_gpu": self.workers, "gpu_memory": self.memory, **known, "basis": basis}


def need_of(context: Context, stage: str) -> Need | None:
    """What a worker of the stage takes; None before anything is known."""
    compute = context.settings[ComputeSettings]
    size = BYTES[compute.dtype]
    weights = size * sum(sum(part.values()) for part in stored_sizes(context.model.path).values())
    peaks = [m.peak for m in context.manifest(stage).markers().values() if m.peak]
    if peaks:
        return Need(weights=weights, unit=max(0, max(peaks) - weights), basis=f"measured in {len(peaks)} units")
    if not context.manifest("capture").done("survey"):
        return None
    batch = context.settings[DataSettings].batch
    rows = sum(by_block(survey_of(context).layers).values())
    return Need(weights=weights, unit=int(KEPT * size * batch * rows), basis="estimated from the survey")


def place(need: Need | None, memory: int) -> Placement:
    """How many workers share a GPU of `memory` bytes: at least one, which may still halve its batches."""
    workers = min(MOST, max(1, memory // need.total)) if need else 1
    return Placement(workers=workers, need=need, memory=memory)
