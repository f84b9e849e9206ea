"""Who is busy when in a run: `python -m tests.bench.timeline [--run-dir DIR] [-- run's options]`.

Runs the command line, and reads the CPU seconds of all its processes from /proc ten times a second. Prints, for each
phase (from one line on a stage to the next), seconds on the clock and CPU seconds by kind of process, and then the CPU
seconds of every process. Needs Linux.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import click

EVERY = 0.1
TICK = os.sysconf("SC_CLK_TCK")
MARK = "ADATSQ_TIMELINE"
KINDS = {
    "gcs_server": "ray", "monitor.py": "ray", "dashboard": "ray", "runtime_env": "ray", "raylet/raylet": "ray",
    "process_reaper": "ray", "ray::": "worker", "default_worker": "worker", "setup_worker": "worker",
    "worker_template": "template",
}  # fmt: skip
"""Kind of process, by what its command line contains."""


@dataclass
class Process:
    """A process of the run: what it is, and its CPU seconds so far."""

    title: str = ""
    kind: str = ""
    seconds: float = 0.0


@dataclass
class Sampler:
    """Reads the CPU seconds of all processes that inherited the mark."""

    mark: str
    processes: dict[int, Process] = field(default_factory=dict)
    others: set[int] = field(default_factory=set)
    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    """Moments, and the CPU seconds by column since the one before."""
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.ended.wait(EVERY):
            self.look()

    def look(self) -> None:
        spent: dict[str, float] = defaultdict(float)
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            if pid in self.others:
                continue
            try:
                if pid not in self.processes:
                    if f"{MARK}={self.mark}".encode() not in Path(f"/proc/{pid}/environ").read_bytes():
                        self.others.add(pid)
                        continue
                    self.processes[pid] = Process()
                fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
                title = (
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                )
            except OSError:
                continue
            process, now = self.processes[pid], (int(fields[11]) + int(fields[12])) / TICK
            if title:
                process.title = title
                process.kind = next((kind for part, kind in KINDS.items() if part in title), "driver")
            column = f"worker {pid}" if process.kind == "worker" else process.kind
            spent[column] += now - process.seconds
            process.seconds = now
        self.samples.append((time.time(), spent))


def columns_of(sampler: Sampler) -> list[str]:
    """The driver, the template of the workers, the workers that did something, and Ray's own processes; `ray` has the
    workers that did nothing."""
    total: dict[str, float] = defaultdict(float)
    for _, spent in sampler.samples:
        for column, seconds in spent.items():
            total[column] += seconds
    workers = sorted(column for column in total if column.startswith("worker") and total[column] > 3)
    return ["driver", "template", *workers, "ray"]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--run-dir", type=click.Path(path_type=Path), help="A new folder [default: a temporary one].")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(run_dir: Path | None, options: tuple[str, ...]) -> None:
    """Print the tables."""
    place = run_dir or Path(tempfile.mkdtemp()) / "run"
    command = [sys.executable, "-m", "adatsq_pipe.pipeline.commands.cli", "run", "--run-dir", str(place), *options]
    sampler, start = Sampler(secrets.token_hex(8)), time.time()
    click.echo(f"load before: {os.getloadavg()[0]:.2f}")
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, MARK: sampler.mark},
    )
    thread = threading.Thread(target=sampler.run)
    thread.start()
    moments = [("start-up", start)]
    assert process.stderr is not None
    for line in process.stderr:
        click.echo(f"{time.time() - start:6.1f}  {line.rstrip()}", err=True)
        name, colon, rest = line.strip().partition(": ")
        if colon and (rest == "started" or "done in" in rest):
            moments.append((name if rest == "started" else f"after {name}", time.time()))
    code, end = process.wait(), time.time()
    sampler.ended.set()
    thread.join()
    columns = columns_of(sampler)
    click.echo(f"\n| phase | clock, s | {' | '.join(columns)} | cores busy |\n|---|{'---|' * (len(columns) + 2)}")
    for (name, begin), (_, until) in zip(moments, [*moments[1:], ("", end)], strict=True):
        click.echo(_row(name, until - begin, sampler, columns, begin, until))
    click.echo(_row("in all", end - start, sampler, columns, start, end + 9))
    click.echo(f"\nexit code {code}, run directory {place}")
    for pid, found in sorted(sampler.processes.items(), key=lambda item: -item[1].seconds):
        click.echo(f"{found.seconds:7.2f} s  {found.kind:7} {pid} {found.title[-100:]}")


def _row(name: str, clock: float, sampler: Sampler, columns: list[str], begin: float, until: float) -> str:
    spent: dict[str, float] = defaultdict(float)
    for moment, by_column in sampler.samples:
        if begin <= moment < until:
            for column, seconds in by_column.items():
                spent[column if column in columns else "ray"] += seconds
    cells = " | ".join(f"{spent[column]:.1f}" for column in columns)
    return f"| {name} | {clock:.1f} | {cells} | {sum(spent.values()) / max(clock, EVERY):.2f} |"


if __name__ == "__main__":
    main()
