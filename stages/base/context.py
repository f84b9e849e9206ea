"""What a worker is handed (Context), what it looks like (Worker), and where it runs (Executor)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, Protocol

from adatsq_pipe.stages.base.run_settings import ModelRef, RunSettings
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.heartbeat import at_work
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.marker import Marker
from adatsq_pipe.storage.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a worker needs to know, small enough to send anywhere: settings, run directory, fingerprints."""

    settings: RunSettings
    run: str
    model: ModelRef
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    gpu_memory: float = 0.0
    """GB of the device's memory; 0 = as it says itself."""
    device_share: float = 1.0
    """Share of a device that a worker has."""
    shares_host: bool = False
    """Whether other workers of the run may be on the same machine."""

    def manifest(self, stage: str) -> Manifest:
        return RunDir.at(self.run).manifest(stage, self.fingerprints[stage])

    def read(self, stage: str, unit: str, *, tensors: Sequence[str] | None = None) -> tuple[Marker, Path]:
        """A finished unit's marker and folder, verified against its digests (with `tensors`, of those only),
        once a process for a file that stays as it is.

        Raises DamagedUnit.
        """
        manifest = self.manifest(stage)
        try:
            return manifest.verify(unit, tensors=tensors, once=True), manifest.unit_folder(unit)
        except KeyError as missing:
            raise DamagedUnit(stage, unit, str(missing.args[0])) from None

    def at_work(self, stage: str, unit: str = "") -> AbstractContextManager[None]:
        """Inside, `status` shows this process at work on the unit; without one, as it opens its model."""
        run = RunDir.at(self.run)
        return at_work(run.path, run.remote, stage=stage, fingerprint=self.fingerprints.get(stage, ""), unit=unit)


class Worker(Protocol):
    """Opened once per process with the context, then called with one unit's key at a time; commits its own units.

    It may have `recover(key, error)`, called when a unit fails: True means that it has changed so that another try may
    pass.
    """

    stage: ClassVar[str]

    def __init__(self, context: Context) -> None: ...

    def __call__(self, key: str) -> object: ...


@dataclass(frozen=True, kw_only=True)
class WorkerRef:
    """A worker class by its name, imported where it is opened: a stage's declaration then needs no torch."""

    stage: str
    path: str
    """"module:Class"."""
    queue_depth: int = 1
    """Tasks that wait at a worker while it works; 2 for tasks of milliseconds."""

    def __call__(self, context: Context) -> Worker:
        with context.at_work(self.stage):
            worker: type[Worker] = resolve_name(self.path)
            return worker(context)


Report = Callable[[int, int], None]
"""Called with (units done, units in all)."""


class Executor(Protocol):
    """Where work runs. Both implementations obey one contract (tests/cluster)."""

    def stream(self, worker: WorkerRef, context: Context, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Yield (key, result) as workers finish, in any order. A requested stop takes effect between units."""
        ...

    def coordinate(self, search: Callable[[Executor, Context, Report], None], context: Context, report: Report) -> None:
        """Run `search(executor, context, report)`, which dispatches tasks itself, in one process."""
        ...
