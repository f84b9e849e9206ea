"""`status --watch`: the run as it goes, in place on a terminal, and a line for each change elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from adatsq_pipe.pipeline.commands.look import (
    Choice,
    clock,
    duration,
    look,
    rate_text,
    size_text,
    units_text,
    worker_text,
)
from adatsq_pipe.pipeline.commands.shell import LEFT
from adatsq_pipe.pipeline.progress import Error, Progress, exit_code
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.rundir import RunDir

INTERVAL, REMOTE_INTERVAL = 2.0, 15.0
"""Seconds between two looks, at a folder and at a URL, which must be listed each time."""
SHARE = 0.1
"""Of the time, looks take no more than this."""
WIDE = 80
"""Columns of a terminal that has room for bars."""
WORKERS = 16
"""Lines of workers on a terminal, at most."""
SURE = 2
"""A run has ended when so many looks in a row say so: at its start it holds nothing for a moment."""


def follow(place: RunDir, choice: Choice, interval: float | None, *, as_json: bool) -> int:
    """Show the run until it ends. Returns the exit code."""
    wait = interval or (INTERVAL if place.remote is None else REMOTE_INTERVAL)
    console = Console(highlight=False)
    in_place = console.is_terminal and not console.is_dumb_terminal and not as_json
    try:
        if in_place:
            with Live(console=console, auto_refresh=False) as live:
                for now in looks(place, choice, wait):
                    live.update(drawn(now, bars=console.width >= WIDE), refresh=True)
        else:
            lines = JsonLines() if as_json else Lines()
            for now in looks(place, choice, wait):
                lines.show(now)
    except KeyboardInterrupt:
        click.echo("stopped watching; the run is as it was", err=True)
        return LEFT
    code = exit_code(now.state)
    assert code is not None
    return code


def looks(place: RunDir, choice: Choice, wait: float) -> Iterator[Progress]:
    """The run again and again, the last time when it has ended."""
    ended = 0
    while True:
        start, spent = time.monotonic(), time.process_time()
        now = look(place, choice)
        ended = ended + 1 if exit_code(now.state) is not None else 0
        yield now
        if ended >= SURE or (ended and now.state == "done"):
            return
        spent = time.process_time() - spent
        time.sleep(max(wait, spent / SHARE) - min(time.monotonic() - start, wait))
        with _last_known():
            place.refresh()


@contextmanager
def _last_known() -> Iterator[None]:
    """Inside, a store that does not answer for a moment leaves what is known of it."""
    try:
        yield
    except StorageError as error:
        click.echo(f"{error}; trying again", err=True)


def drawn(now: Progress, *, bars: bool = True) -> Group:
    """The run as a terminal shows it, where it is wide with bars."""
    table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
    for column in ("stage", "state", "", "units", "running", "failed", "rate", "left"):
        least = {"stage": 9, "state": 7, "units": 5}.get(column)
        table.add_column(column, justify="left" if column in ("stage", "state", "") else "right", min_width=least)
    colours = {"done": "green", "running": "cyan", "damaged": "red"}
    for stage in now.stages:
        step, failed = stage.step, len(stage.step.failed) if not stage.step.complete else 0
        bar = ProgressBar(total=step.expected or max(step.done, 1), completed=step.done, width=20)
        of = f"/{step.expected}" if step.expected is not None else ""
        table.add_row(
            stage.name, Text(stage.state, style=colours.get(stage.state, "")),
            bar if bars and (step.expected is not None or step.complete) else "", f"{step.done}{of}",
            str(stage.running or ""), Text(str(failed or ""), style="red"), rate_text(stage.rate),
            "" if stage.left is None else duration(stage.left),
        )  # fmt: skip
    lines = [Text(f"{now.state}: {now.why}", style="bold")]
    lines += [Text(worker_text(beat, now.now)) for beat in now.workers[:WORKERS]]
    if len(now.workers) > WORKERS:
        lines.append(Text(f"and {len(now.workers) - WORKERS} more workers"))
    lines += [
        Text(f"{beat.name} gave no sign for {duration(now.now - beat.beat)}", style="yellow") for beat in now.lost
    ]
    lines.append(
        Text(f"{len(now.workers)} workers, {size_text(now.disk)} on disk, seen at {clock(now.now)}", style="dim")
    )
    lines += [Text(f"best policy: {now.best.text()}")] if now.best else []
    lines += [Text(_error(error), style="red") for error in now.errors]
    lines += [Text(now.note, style="yellow")] if now.note else []
    return Group(table, *lines)


def _error(error: Error) -> str:
    return f"{clock(error.when)} {error.stage} {error.unit} failed on {error.host}: {error.error}"


class Lines:
    """A line for each change, for logs and pipes."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def show(self, now: Progress) -> None:
        """Print what is not as it was when it was printed last. Times alone are no change."""
        lines = dict[str, tuple[str, str]]()
        for stage in now.stages:
            key = f"{stage.state} {stage.step.done} {len(stage.step.failed)} {len(stage.step.damaged)}"
            if stage.step.done or stage.state not in ("missing", "stale") or stage.step.failed:
                lines[stage.name] = (key, f"{stage.name}: {stage.state}, {units_text(stage)}")
        for beat in now.workers:
            lines[f"worker {beat.name}"] = ("here", f"worker {beat.name} is there")
        for beat in now.lost:
            gone = f"worker {beat.name} gave no sign for {duration(now.now - beat.beat)}"
            lines[f"worker {beat.name}"] = ("gone", gone)
        for error in now.errors:
            lines[f"error {error.stage} {error.unit}"] = (str(error.when), _error(error))
        if now.best:
            lines["policy"] = (now.best.text(), f"policy: {now.best.text()}")
        if now.note:
            lines["note"] = (now.note, f"note: {now.note}")
        lines["run"] = (f"{now.state} {now.why}", f"run: {now.state}, {now.why}")
        for what, (key, line) in lines.items():
            if self._shown.get(what) != key:
                self._shown[what] = key
                click.echo(f"{clock(now.now)} {line}")
        sys.stdout.flush()


class JsonLines:
    """The whole run in a line of JSON, for each change."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, now: Progress) -> None:
        plain = now.plain()
        fixed = {**plain, "time": 0, "disk_bytes": 0, "workers": [(b.name, b.unit) for b in now.workers]}
        fixed["stages"] = [(s.state, s.step.done, s.running, len(s.step.failed)) for s in now.stages]
        if (key := json.dumps(fixed)) != self._shown:
            self._shown = key
            click.echo(json.dumps(plain))
            sys.stdout.flush()
