"""What a unit costs besides its work, over many that do nothing: `python -m tests.bench.units [--units 10000]`.

In a folder: dispatch and marker on two Ray workers, `status` on the whole, planning when all are done. In a bucket
whose every answer takes 20 ms: planning when all are done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import click

from adatsq_pipe.cluster.ray_executor import RayExecutor
from adatsq_pipe.cluster.resources import Resources
from adatsq_pipe.pipeline.config import load
from adatsq_pipe.pipeline.plan import plan
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.units import complete, fan_out, unit_of
from adatsq_pipe.storage.remote import open_remote
from adatsq_pipe.storage.rundir import RunDir
from tests import s3


class Nothing:
    """The worker whose units are empty."""

    stage: ClassVar[str] = "capture"
    queue_depth: ClassVar[int] = 2

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, key: str) -> None:
        with unit_of(self.context, self.stage, key):
            pass


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@click.command()
@click.option("--units", default=10_000, show_default=True)
@click.option("--latency", default=0.02, show_default=True, help="Seconds before the bucket answers.")
def main(units: int, latency: float) -> None:
    keys = [f"activations/{i:05d}" for i in range(units)]
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDir.at(f"{scratch}/run")
        run.create()
        context = plan(load(preset=None, file=None, sets=(), model=None, previous=None), run)[1]
        pool = RayExecutor(Resources(workers=2), "units")
        fan_out(context, pool, Nothing, keys[:20], lambda done, of: None)
        spent = _seconds(lambda: fan_out(context, pool, Nothing, keys, lambda done, of: None))
        pool.close()
        complete(context, "capture")
        click.echo(f"dispatch and marker, two workers: {1000 * spent / units:.2f} ms a unit (aim 5)")
        command = [sys.executable, "-m", "adatsq_pipe.pipeline.commands.cli", "status", "--run-dir", str(run.path)]
        click.echo(f"status of {units} units: {_seconds(lambda: subprocess.run(command, check=True)):.2f} s (aim 1)")
        _bucket(run, keys, context.fingerprints["capture"], latency, scratch)


def _bucket(run: RunDir, keys: list[str], fingerprint: str, latency: float, scratch: str) -> None:
    with s3.served() as port, s3.door(port) as door:
        os.environ.update(s3.environment(door.server_port), ADATSQ_PIPE_CACHE=str(Path(scratch) / "mirrors"))
        there = open_remote("s3://bucket/run")
        there.files.mkdir("bucket")
        there.files.put(str(run.path), there.base, recursive=True)
        door.latency = latency

        def planned() -> None:
            opened = RunDir.open("s3://bucket/run")
            assert opened.manifest("capture", fingerprint).missing(keys) == []

        before = door.counts["passed"]
        spent = _seconds(planned)
        click.echo(
            f"planning them in a bucket, a machine that has none of it: {spent:.2f} s, "
            f"{door.counts['passed'] - before} requests"
        )
        click.echo(f"planning them again from there: {_seconds(planned):.2f} s (aim 5)")


if __name__ == "__main__":
    main()
