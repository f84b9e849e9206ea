"""What a run costs beyond the work itself, as ratios: `python -m tests.bench.overhead [--workers 2]`.

Runs the default quantization of the built-in model in a fresh directory and prints
- wall time of the command, less its start-up (up to the first unit), over (model compute + linear algebra) / workers,
- capture's worker time over its bare forwards,
- the search in equivalents of one full-precision trajectory, by denoiser calls and by seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click


def start_up(run_dir: Path, began: float) -> float:
    """Seconds from the command to the first unit's first moment: Ray, the workers' processes, the model opened there.

    Taken from the run itself, since it differs by seconds from one run to the next. `began` is time.time().
    """
    starts = []
    for path in run_dir.glob("capture/*/markers/survey.json"):
        starts.append(path.stat().st_mtime - json.loads(path.read_text())["seconds"]["total"])
    return min(starts) - began


@click.command()
@click.option("--workers", default=2, show_default=True)
def main(workers: int) -> None:
    """Print the ratios."""
    run_dir = Path(tempfile.mkdtemp()) / "run"
    command = [sys.executable, "-m", "adatsq_pipe.pipeline.commands.cli", "run", "--run-dir", str(run_dir)]
    start = time.time()
    subprocess.run([*command, "--set", f"cluster.workers={workers}"], check=True)
    wall = time.time() - start
    summary = json.loads((run_dir / "report" / "summary.json").read_text())
    seconds, search = summary["seconds"], summary["search"]
    work = sum(part["model"] + part["algebra"] for part in seconds.values())
    fixed = start_up(run_dir, start)
    for name, part in seconds.items():
        shares = ", ".join(f"{kind} {part[kind]:6.1f}" for kind in ("model", "algebra", "overhead"))
        click.echo(f"{name:9} wall {part['wall']:6.1f} s   workers: {shares} s")
    click.echo(
        f"wall of the command {wall:.1f} s, work / {workers} workers {work / workers:.1f} s, start-up {fixed:.1f} s"
    )
    click.echo(f"wall beyond start-up over work / workers   {(wall - fixed) / (work / workers):.2f}   (aim 1.15)")
    click.echo(f"capture over its bare forwards             {summary['capture_over_bare_forwards']:.2f}   (aim 1.30)")
    click.echo(f"search, FP trajectories by calls           {search['fp_trajectories_by_calls']:.2f}   (aim 10)")
    click.echo(f"search, FP trajectories by seconds         {search['fp_trajectories_by_seconds']:.2f}")


if __name__ == "__main__":
    main()
