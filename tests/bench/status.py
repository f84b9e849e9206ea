"""How long `status` takes on a run directory with many units, in seconds of CPU.

    python -m tests.bench.status --units 10000

It makes a run directory in a temporary folder whose stages have that many units altogether, committed as workers commit
them, and starts `adatsq-pipe status` on it in processes of their own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from adatsq_pipe.pipeline.plan import plan
from adatsq_pipe.pipeline.request import load_config, write_request
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.rundir import RunDir

FILES = ("tensors.zarr.zip",)
"""Of a unit: its files as most are named."""
STAGES = ("capture", "fisher", "hessian", "solve", "search")


def make_run(folder: Path, units: int) -> RunDir:
    """A run directory at `folder` whose first stages have `units` units altogether."""
    run = RunDir.at(str(folder))
    run.create()
    config = load_config(run, None, None, None, ())
    write_request(run, config)
    _, context = plan(config, run)
    for place, stage in enumerate(STAGES):
        own = range(place, units, len(STAGES))
        add_units(context.manifest(stage), [f"made/{i:05d}" for i in own])
    return run


def add_units(manifest: Manifest, units: list[str]) -> None:
    """Commit units of a few small files each."""
    for unit in units:
        folder = manifest.open_unit(unit)
        for name in FILES:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{unit} {name}")
        manifest.commit(unit, value={"error": 0.5, "samples": 8}, seconds={"model": 1.0, "total": 1.5, "calls": 1.0})


def seconds_of(*arguments: str) -> tuple[float, float]:
    """CPU seconds of the command line with these arguments, and of the same program's `--version`."""

    def spent(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "adatsq_pipe.pipeline.commands.cli", *words], check=True, capture_output=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(spent(*arguments) for _ in range(3)), min(spent("--version") for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=2_000)
    parser.add_argument("--keep", help="folder to make the run in, and to leave there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(arguments.keep or temporary) / "run"
        if not run.exists():
            make_run(run, arguments.units)
        whole, start = seconds_of("status", "--run-dir", str(run))
    print(f"status of {arguments.units} units: {whole:.2f} s of CPU, of which {start:.2f} s to start the program")


if __name__ == "__main__":
    main()
