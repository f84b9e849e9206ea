"""Units of work: one folder of results each, with a marker that vouches for it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.resident import take_peak
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.fingerprint import Plain
from adatsq_pipe.storage.manifest import COMPLETE, Manifest
from adatsq_pipe.storage.seen import sights

if TYPE_CHECKING:
    from adatsq_pipe.stages.base.micro_batch import MicroBatch


def fan_out(
    context: Context, executor: Executor, worker: WorkerRef, keys: Sequence[str] | Mapping[str, Sequence[str]],
    report: Report,
) -> None:  # fmt: skip
    """Do the units of `keys` that have no sound marker.

    A mapping says which units belong to each task of the worker; a task is done if any of its units is missing.
    """
    tasks = keys if isinstance(keys, Mapping) else {key: [key] for key in keys}
    units = [unit for task in tasks.values() for unit in task]
    missing = set(context.manifest(worker.stage).missing(units))
    left = {task: count for task, own in tasks.items() if (count := len(missing.intersection(own)))}
    done = len(units) - len(missing)
    report(done, len(units))
    for task, _ in executor.stream(worker, context, list(left)):
        done += left[task]
        report(done, len(units))


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What a finished unit's marker says besides the digests of its files."""

    value: Plain
    seconds: Mapping[str, float]
    """By kind: `model`, `algebra`, and their `total` with everything else; `cpu`, of all threads of the process."""
    calls: float
    """Denoiser calls that the unit accounts for."""
    micro_batch: Mapping[str, int] | None
    """Samples at a time, `from` and `to`, if a batch did not fit."""
    peak: int
    """Most bytes of GPU memory at once; 0 on a CPU."""
    resident: int = 0
    """Most bytes of main memory that the process held since its unit before."""

    def commit(self, manifest: Manifest, key: str) -> None:
        """Write the marker, in which calls and main memory stand among the seconds (see Marker.calls)."""
        seconds = {**self.seconds, "calls": self.calls, "resident": float(self.resident)}
        manifest.commit(key, value=self.value, seconds=seconds, micro_batch=self.micro_batch, peak=self.peak)


class Unit:
    """One unit being worked on: where its bytes go, and where its seconds went."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.value: Plain = None
        self.seconds = {"model": 0.0, "algebra": 0.0}
        self.elsewhere = 0.0
        """Seconds of other units that this one takes on its account."""
        self.calls = 0.0
        self.micro_batch: Mapping[str, int] | None = None
        """Samples at a time, `from` and `to`, if they did not all fit."""

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count the time inside as "model" compute or linear "algebra"; the rest of a unit is overhead."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - start


@contextmanager
def unit_of(context: Context, stage: str, key: str, micro: MicroBatch | None = None) -> Iterator[Unit]:
    """Work on a unit: its folder starts empty, and its marker is written if and only if the body succeeds.

    If the body fails, the traceback is stored beside the markers. `micro` is the worker's, if it runs a denoiser.
    """
    manifest, start, cpu = context.manifest(stage), time.perf_counter(), time.process_time()
    unit = Unit(manifest.open_unit(key))
    if micro is not None:
        micro.begin()
    with context.at_work(stage, key):
        try:
            yield unit
        except DamagedUnit:
            raise
        except Exception:
            manifest.fail(key, traceback.format_exc())
            raise
        result = UnitResult(
            value=unit.value,
            seconds={
                **unit.seconds,
                "total": time.perf_counter() - start + unit.elsewhere,
                "cpu": time.process_time() - cpu,
            },
            calls=unit.calls,
            micro_batch=unit.micro_batch if micro is None else micro.reduction(),
            peak=0 if micro is None else micro.peak(),
            resident=take_peak(),
        )
        result.commit(manifest, key)


def complete(context: Context, stage: str) -> None:
    """Mark the stage finished: the marker lists the digests of all its units."""
    manifest = context.manifest(stage)
    if not manifest.done(COMPLETE):
        manifest.open_unit(COMPLETE)
        manifest.commit(COMPLETE, value={unit: marker.digest for unit, marker in manifest.markers().items()})
        sights(manifest)  # keeps what was read, for `status`


def shards(count: int, size: int) -> list[range]:
    """`count` items cut into ranges of `size`, the last maybe shorter."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
