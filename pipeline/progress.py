"""Where a run stands, from its run directory alone: units, workers, rates, disk, the best policy, the last errors.

No torch and no cluster: it works while a cluster runs elsewhere, and after it is gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from adatsq_pipe.pipeline import finished
from adatsq_pipe.pipeline.plan import Step
from adatsq_pipe.stages.allocation.best import Best, best_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.storage.fingerprint import Plain
from adatsq_pipe.storage.heartbeat import Beat
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.rundir import RunDir

RECENT_SECONDS, RECENT_UNITS = 300.0, 20
"""A rate is that of the units of the last minutes, or of the last few units where these take longer."""
ERRORS = 5
"""The last errors, at most."""

State = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class StageProgress:
    """A stage, with its units by what they are."""

    name: str
    state: str
    """done, running, partial, damaged, stale or missing."""
    step: Step
    running: int
    """Units that live workers are at."""
    rate: float | None
    """Units a second, while the stage runs and two units are done; else None."""
    left: float | None
    """Seconds until the last unit at that rate."""

    def plain(self) -> dict[str, Plain]:
        return {
            "stage": self.name, "state": self.state, "done": self.step.done, "running": self.running,
            "failed": len(self.step.failed), "damaged": len(self.step.damaged), "expected": self.step.expected,
            "per_second": self.rate, "seconds_left": self.left,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Error:
    """The last failure of a unit that is not done."""

    stage: str
    unit: str
    host: str
    error: str
    when: float


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A run at one moment."""

    run: str
    state: State
    why: str
    """What the state rests on, in a few words."""
    stages: tuple[StageProgress, ...]
    workers: tuple[Beat, ...]
    """Those that gave a sign of life within the last minute."""
    lost: tuple[Beat, ...]
    """Those of the same run that do not any more, and did not finish what they were at."""
    disk: int
    """Bytes."""
    best: Best | None
    errors: tuple[Error, ...]
    published_damage: str
    """What is wrong with the model and the report of a finished run; "" if nothing is."""
    note: str
    """How the stages were found, where the settings were not at hand; else empty."""
    now: float

    def plain(self) -> dict[str, Plain]:
        """As JSON values."""
        return {
            "run": self.run, "state": self.state, "why": self.why, "time": self.now, "note": self.note,
            "stages": [stage.plain() for stage in self.stages],
            "workers": [{**_worker(beat), "alive": beat in self.workers} for beat in (*self.workers, *self.lost)],
            "disk_bytes": self.disk,
            "best": self.best.plain() if self.best else None,
            "errors": [
                {"stage": e.stage, "unit": e.unit, "host": e.host, "error": e.error, "time": e.when}
                for e in self.errors
            ],
        }  # fmt: skip


def _worker(beat: Beat) -> dict[str, Plain]:
    return {
        "host": beat.host, "pid": beat.pid, "stage": beat.stage, "unit": beat.unit, "since": beat.since,
        "seen": beat.beat,
    }  # fmt: skip


def progress(
    run: RunDir, steps: Sequence[Step], context: Context, *, note: str = "", others: int | None = None
) -> Progress:
    """The run as these steps show it, now. `others` are the bytes of `other_bytes`, if they are known already."""
    now, holder, beats = time.time(), run.holder(), run.workers()
    live = [beat for beat in beats if beat.is_alive(now)]
    held = holder is not None and holder.is_alive(now)
    complete = all(step.complete for step in steps)
    wrong = finished.damage(run, context.fingerprints) if complete else ""
    stages = tuple(_stage(step, run, live, holder if held else None, now) for step in steps)
    state, why = _state(run, stages, holder, held, wrong)
    failures = [(step.stage.name, failure) for step in steps if not step.complete for failure in step.failures]
    latest = sorted(failures, key=lambda pair: pair[1].when)[-ERRORS:]
    return Progress(
        run=run.display(), state=state, why=why, stages=stages, workers=tuple(live),
        lost=tuple(b for b in beats if b not in live and (b.unit or b.opening)) if held else (),
        disk=_disk(run, steps, other_bytes(run, steps) if others is None else others),
        best=best_of(context, complete=next(s.complete for s in steps if s.stage.name == "search")),
        errors=tuple(
            Error(stage=stage, unit=f.unit, host=f.host, error=f.error, when=f.when) for stage, f in latest
        ),
        published_damage=wrong, note=note, now=now,
    )  # fmt: skip


def _stage(step: Step, run: RunDir, live: Sequence[Beat], holder: Beat | None, now: float) -> StageProgress:
    name, manifest = step.stage.name, run.manifest(step.stage.name, step.fingerprint)
    at_it = [beat for beat in live if beat.stage == name and beat.fingerprint == step.fingerprint[:16]]
    units = {beat.unit for beat in at_it if beat.unit and not step.complete}
    state, rate, left = step.state, None, None
    if holder is not None and at_it and not step.complete:
        state = "running"
        rate = _rate(manifest, holder.since, now)
        if rate and step.expected is not None:
            left = max(step.expected - step.done, 0) / rate
    return StageProgress(name=name, state=state, step=step, running=len(units), rate=rate, left=left)


def _rate(manifest: Manifest, since: float, now: float) -> float | None:
    """Units a second of the run that began at `since`."""
    times = [when for when in manifest.times() if when >= since]
    recent = [when for when in times if when >= now - RECENT_SECONDS]
    taken = recent if len(recent) > RECENT_UNITS else times[-RECENT_UNITS:]
    if len(taken) < 2:
        return None
    return (len(taken) - 1) / max(now - taken[0], 1e-3)


def _state(
    run: RunDir, stages: Sequence[StageProgress], holder: Beat | None, held: bool, wrong: str
) -> tuple[State, str]:
    """What the run is, and why."""
    again = f"adatsq-pipe run --run-dir {run.display()}"
    if held and holder is not None:
        return "running", f"process {holder.pid} on {holder.host} holds it"
    missing = [stage.name for stage in stages if not stage.step.complete]
    if not missing:
        return ("failed", f"{wrong}; write it again with: {again}") if wrong else ("done", "all stages are done")
    left = f"process {holder.pid} on {holder.host} is gone" if holder is not None else "no process holds it"
    failed = sum(len(stage.step.failed) for stage in stages if not stage.step.complete)
    damaged = sum(len(stage.step.damaged) for stage in stages)
    what = [f"{failed} unit{'s' * (failed > 1)} failed"] if failed else []
    what += [f"{damaged} unit{'s are' if damaged > 1 else ' is'} damaged"] if damaged else []
    text = f"{'; '.join([left, *what])}; not done: {', '.join(missing)}; go on with: {again}"
    return ("failed" if what else "stopped"), text


def _disk(run: RunDir, steps: Sequence[Step], others: int) -> int:
    return sum(run.remote.sizes.values()) if run.remote is not None else others + sum(step.size for step in steps)


def other_bytes(run: RunDir, steps: Sequence[Step]) -> int:
    """Bytes of all files of a run in a folder but the units of these steps, whose markers have their sizes. 0 at a URL.

    A file with two names counts once: a published model's large files are those of the assembled one.
    """
    if run.remote is not None:
        return 0
    known = {str(run.path / step.stage.name / step.fingerprint[:16]) for step in steps if step.fingerprint}
    total, seen, folders = 0, set[int](), [str(run.path)]
    assembled = any(step.stage.name == "assemble" and step.done for step in steps)
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_symlink():
                continue
            if entry.is_dir():
                if entry.path not in known:
                    folders.append(entry.path)
                continue
            try:
                stat = entry.stat()
            except OSError:
                continue
            shared = stat.st_nlink > 1 and assembled and entry.path.startswith(f"{run.path}/published/")
            if not shared and stat.st_ino not in seen:
                total += stat.st_size
                if stat.st_nlink > 1:
                    seen.add(stat.st_ino)
    return total


def exit_code(state: State) -> int | None:
    """What `status --watch` exits with; None while the run runs."""
    codes: Mapping[State, int] = {"done": 0, "failed": 1, "stopped": 75}
    return codes.get(state)
