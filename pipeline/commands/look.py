"""What `status` shows, once or again and again: the run at this moment, and its texts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from adatsq_pipe.pipeline import config as configuration
from adatsq_pipe.pipeline.commands.layout import many
from adatsq_pipe.pipeline.compute import kept_by
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.plan import Step, plan
from adatsq_pipe.pipeline.progress import Progress, StageProgress, progress
from adatsq_pipe.pipeline.recorded import any_recorded, recorded_plan
from adatsq_pipe.pipeline.request import load_config, read_request
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.storage.heartbeat import Beat
from adatsq_pipe.storage.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The options of the configuration, as the user gave them."""

    model: str | None = None
    preset: str | None = None
    file: Path | None = None
    sets: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return self == Choice()


def look(place: RunDir, choice: Choice, others: int | None = None) -> Progress:
    """The run at this moment. Raises StorageError, ConfigError. `others`: see progress."""
    steps, context, note = steps_of(place, choice)
    return progress(place, steps, context, note=note, others=others)


def steps_of(place: RunDir, choice: Choice) -> tuple[list[Step], Context, str]:
    """The steps of the settings that the run directory stores, or of those that were asked for.

    Where the settings or the model are not at hand, the steps that the run directory has recorded, and a note on that.
    """
    note, known = "", True
    if choice.is_empty and any_recorded(place):
        try:
            request = read_request(place.path)
            config = configuration.load(
                preset=None, file=None, sets=(), model=None, previous=request, kept=kept_by(place)
            )
            if request is None:
                note, known = "config.toml is missing (a comparison has none)", False
            elif not config.model.is_dir():
                note = f"the model folder {config.model} is not on this machine"
        except (ConfigError, OSError) as error:
            note, known = f"the settings cannot be used on this machine ({error})", False
    if not note:
        return *plan(load_config(place, choice.model, choice.preset, choice.file, choice.sets), place), ""
    if not known:
        config = configuration.load(preset=None, file=None, sets=(), model=None, previous=None)
    steps, context = recorded_plan(config, place, settings_known=known)
    return steps, context, f"{note}: shown are the stages that were recorded last"


def units_text(stage: StageProgress) -> str:
    """The units of a stage: how many are done, running and failed, how fast, and for how long still."""
    step = stage.step
    of = f"/{step.expected}" if step.expected is not None else ""
    parts = [f"{step.done}{of} units"]
    parts += [f"{stage.running} running"] if stage.running else []
    parts += [f"{len(step.failed)} failed"] if step.failed and not step.complete else []
    parts += [f"{len(step.damaged)} damaged"] if step.damaged else []
    parts += [rate_text(stage.rate)] if stage.rate else []
    parts += [f"{duration(stage.left)} left"] if stage.left is not None else []
    return ", ".join(parts)


def space_text(step: Step) -> str:
    """What a stage takes of disk and main memory; "" where it is not known."""
    parts = [f"{size_text(step.size)} on disk"] if step.size else []
    parts += [f"{size_text(step.memory)} of memory at most"] if step.memory else []
    return ", ".join(parts)


def rate_text(rate: float | None) -> str:
    """Units a second, a minute or an hour: what has a figure before the point."""
    if rate is None:
        return ""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if rate * seconds >= 1:
            return f"{rate * seconds:.1f}/{unit}"
    return f"{rate * 86400:.1f}/day"


def duration(seconds: float) -> str:
    """Seconds as people say them: "8 s", "3 min 20 s", "5 h 12 min", "3 d 4 h"."""
    whole = max(0, round(seconds))
    for large, size, small, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part} {small}"
    return f"{whole} s"


def worker_text(beat: Beat, now: float) -> str:
    """What a worker does, and for how long."""
    if not beat.stage:
        return f"{beat.name} waits"
    what = f"{beat.stage} {beat.unit}" if beat.unit else f"waits for a unit of {beat.stage}"
    if beat.opening:
        what = f"opens the model for {beat.stage}"
    return f"{beat.name}: {what}, {duration(now - beat.since)}"


def size_text(size: int) -> str:
    return f"{many(size)}B" if size >= 1000 else f"{size} B"


def summary_lines(now: Progress) -> list[str]:
    """What is known of the whole run, below its stages."""
    lines = [f"run       {now.state}: {now.why}"]
    lines += [f"worker    {worker_text(beat, now.now)}" for beat in now.workers]
    lines += [f"worker    {beat.name} gave no sign for {duration(now.now - beat.beat)}" for beat in now.lost]
    lines.append(f"disk      {size_text(now.disk)}")
    lines += [f"policy    {now.best.text()}"] if now.best else []
    lines += [f"note      {now.note}"] if now.note else []
    return lines


def clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))
