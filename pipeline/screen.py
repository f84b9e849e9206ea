"""Progress as people see it: bars with units, rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adatsq_pipe.stages.base.context import Report

PLAIN_EVERY = 5.0
"""Seconds between plain lines."""


class Screen:
    """Shows stages on stderr, so that stdout stays for results."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Report]:
        """Progress of one stage: the report takes (units done, units in all)."""
        shown = self._bar(name) if self.console.is_terminal else self._lines(name)
        with shown as report:
            yield report

    @contextmanager
    def _bar(self, name: str) -> Iterator[Report]:
        columns = (
            TextColumn(f"{name:9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(name, total=None, rate="")
            start, first = time.perf_counter(), -1

            def report(done: int, total: int) -> None:
                nonlocal first
                first = done if first < 0 else first
                rate = (done - first) / max(time.perf_counter() - start, 1e-9)
                progress.update(task, completed=done, total=total or None, rate=f"{rate:.1f}/s")

            yield report

    @contextmanager
    def _lines(self, name: str) -> Iterator[Report]:
        start = last = time.perf_counter()
        first, state = -1, (0, 0)

        def report(done: int, total: int) -> None:
            nonlocal first, last, state
            first, state = (done if first < 0 else first), (done, total)
            now = time.perf_counter()
            if now - last >= PLAIN_EVERY and total:
                rate = (done - first) / (now - start)
                left = f", {(total - done) / rate:.0f} s left" if rate else ""
                self.say(f"{name}: {done}/{total} units, {rate:.1f}/s{left}")
                last = now

        self.say(f"{name}: started")
        yield report
        self.say(f"{name}: {state[0]}/{state[1]} units, done in {time.perf_counter() - start:.1f} s")
