"""What every stage is made of: settings shared by several, the Stage value, Context, Executor and units of work.

Importing this, or any stage, brings in no torch: `status` and a run with nothing to do must start at once. A worker
imports what it needs when it is opened.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.fingerprint import Plain
from adatsq_pipe.storage.manifest import COMPLETE, Manifest, Marker
from adatsq_pipe.storage.rundir import RunDir

if TYPE_CHECKING:
    from adatsq_pipe.stages.micro import MicroBatch


class StageError(RuntimeError):
    """The work cannot go on as configured; the message says what was found and what to do. Everything done is kept."""

    certain: ClassVar[bool] = True
    """Trying again would find the same."""


class NotTaken(StageError):
    """The pipeline is of a kind that cannot be quantized; said before any work, with the reason."""


class Settings(BaseModel):
    """A TOML table: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SettingsT = TypeVar("SettingsT", bound=Settings)


Scalar = bool | int | float | str | None
CallValue = Scalar | list[Scalar | list[Scalar]] | dict[str, Scalar]


class ModelSettings(Settings):
    """[model] What is quantized, and how its pipeline is called."""

    path: str = ""
    """A local diffusers pipeline folder; empty = the built-in scenes/flux-dev."""
    call: dict[str, CallValue] = {}
    """Keyword arguments of the pipeline call, e.g. height, width, num_inference_steps, guidance_scale. Text "null" is
    Python's None, for which TOML has no word."""
    world: Literal["", "scenes", "classes", "motions"] = ""
    """What the model draws, if a program can score it: captioned "scenes", "classes" of things, or "motions" in clips
    (the folder's sampling.json says it); else empty."""

    @field_validator("call", mode="before")
    @classmethod
    def _nothing(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        return {key: None if value == "null" else value for key, value in given.items()}


class DataSettings(Settings):
    """[data] Captions for calibration."""

    prompts: tuple[str, ...] = ()
    """Calibration captions; empty = the built-in world's training captions."""
    inputs: tuple[dict[str, Any], ...] = ()
    """What each caption comes with, from a manifest (see prompts_file): `images` by argument, `call`, `seed`."""
    prompts_file: str = ""
    """The same from a file: text with one to a line, JSONL or Parquet with a column prompt. Its contents bear identity,
    its place does not."""
    count: int = Field(default=32, ge=1)
    """How many captions, when they come from the built-in world."""
    batch: int = Field(default=8, ge=1)
    """Captions per forward pass. Float results depend on it, so it bears identity. With pictures from a manifest it is
    1 unless it is set: some pipelines take the pictures of a batch for one prompt's."""
    seed: int = 0


class ComputeSettings(Settings):
    """[compute] What float results depend on besides the method."""

    device: str = "cpu"
    """Torch device of the workers: cpu or cuda."""
    dtype: str = Field(default="float32", pattern="^(float32|bfloat16|float16)$")
    threads: int = Field(default=1, ge=1)
    """CPU threads of one worker."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a worker needs to know, small enough to send anywhere: plain config, run directory, fingerprints."""

    tables: Mapping[str, Mapping[str, Any]]
    run: str
    model: str
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    gpu_memory: float = 0.0
    """GB of the device's memory; 0 = as it says itself."""
    device_share: float = 1.0
    """Share of a device that a worker has."""

    def settings(self, table: str, kind: type[SettingsT]) -> SettingsT:
        return kind.model_validate(self.tables[table])

    def manifest(self, stage: str) -> Manifest:
        return RunDir.at(self.run).manifest(stage, self.fingerprints[stage])

    def read(self, stage: str, unit: str, *, tensors: Sequence[str] | None = None) -> tuple[Marker, Path]:
        """A finished unit's marker and folder, verified against its digests (of the named `tensors` only, if given).

        Raises DamagedUnit.
        """
        manifest = self.manifest(stage)
        try:
            return manifest.verify(unit, tensors=tensors), manifest.unit_folder(unit)
        except KeyError as missing:
            raise DamagedUnit(stage, unit, str(missing.args[0])) from None


class Worker(Protocol):
    """Opened once per process with the context, then called with one unit's key at a time; commits its own units.

    It may have `relieve(key, error)`, asked when a unit fails: whether it has changed so that a further try may pass.
    """

    stage: ClassVar[str]

    def __init__(self, context: Context) -> None: ...

    def __call__(self, key: str) -> Any: ...


Report = Callable[[int, int], None]
"""Called with (units done, units in all)."""


class Executor(Protocol):
    """Where work runs. Both implementations obey one contract (tests/cluster)."""

    def stream(self, worker: type[Worker], context: Context, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Yield (key, result) as workers finish, in any order. Stops between units when a stop was asked for."""
        ...

    def conduct(self, drive: Callable[[Executor, Context, Report], None], context: Context, report: Report) -> None:
        """Run `drive`, which dispatches work itself, in one place of its own."""
        ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage as a value. `reads` is what its bytes depend on besides the stages it needs; `run` does what is
    missing; `expected` is the number of units once it can be known."""

    name: str
    version: int
    needs: tuple[str, ...]
    reads: Callable[[Mapping[str, Any], str], Plain]
    run: Callable[[Context, Executor, Report], None]
    expected: Callable[[Context], int | None]
    settings: type[Settings]
    shares: Mapping[str, Callable[[Mapping[str, Any], str], Plain]] = field(default_factory=dict)
    """Further folders of units, by name, with what *their* bytes depend on: for results that outlive the stage's."""


def identity(tables: Mapping[str, Mapping[str, Any]], *names: str) -> dict[str, Plain]:
    """The identity line of a stage that reads the tables `names`."""
    return {name: dict(tables[name]) for name in names}


ORDER = ("capture", "fisher", "hessian", "solve", "search", "assemble", "evaluate")


def discover() -> dict[str, Stage]:
    """Every module of this package that defines STAGE, in the order of the run."""
    import adatsq_pipe.stages as package

    names = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_") and m.name in ORDER]
    stages = {name: importlib.import_module(f"{package.__name__}.{name}").STAGE for name in names}
    return {name: stages[name] for name in sorted(stages, key=ORDER.index)}


def fan_out(context: Context, executor: Executor, worker: type[Worker], keys: Sequence[str], report: Report) -> None:
    """Do the units of `keys` that have no sound marker."""
    manifest = context.manifest(worker.stage)
    missing = manifest.missing(keys)
    done = len(keys) - len(missing)
    report(done, len(keys))
    for _ in executor.stream(worker, context, missing):
        done += 1
        report(done, len(keys))


class Unit:
    """One unit being worked on: where its bytes go, and where its seconds went."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.value: Any = None
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
    """Work on a unit: its folder is made empty, and its marker is written if and only if the body succeeds.

    Else the reason is kept beside the markers. `micro` is the worker's, if it runs a denoiser.
    """
    manifest, start = context.manifest(stage), time.perf_counter()
    unit = Unit(manifest.open_unit(key))
    if micro is not None:
        micro.begin()
    try:
        yield unit
    except DamagedUnit:
        raise
    except Exception:
        manifest.fail(key, traceback.format_exc())
        raise
    total = time.perf_counter() - start + unit.elsewhere
    seconds = {**unit.seconds, "total": total, "calls": unit.calls}
    narrowed = unit.micro_batch if micro is None else micro.narrowed()
    peak = 0 if micro is None else micro.peak()
    manifest.commit(key, value=unit.value, seconds=seconds, micro_batch=narrowed, peak=peak)


def complete(context: Context, stage: str) -> None:
    """Mark the stage finished, vouching for the digests of all its units."""
    manifest = context.manifest(stage)
    if not manifest.done(COMPLETE):
        manifest.open_unit(COMPLETE)
        manifest.commit(COMPLETE, value={unit: marker.digest for unit, marker in manifest.markers().items()})


def shards(count: int, size: int) -> list[range]:
    """`count` items cut into ranges of `size`, the last maybe shorter."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
