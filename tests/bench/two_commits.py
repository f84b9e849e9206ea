"""What do two commits take for the same run, stage by stage? `python -m tests.bench.two_commits MODEL --run-dir DIR`.

Needs `--command NAME=PATH` for each: the `adatsq-pipe` of a checkout of that commit. Every stage is a command of its
own, in one process with one thread, and the commits take turns, stage by stage; with `--at-once` all stages are one
command. The CPU seconds of that process count, and the most main memory that it held: its start is in both. Figures
stay in DIR, and a bench that was stopped goes on with the same command.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import click

STAGES = ("capture", "fisher", "hessian", "solve", "search", "assemble", "assemble..evaluate")
"""What each command runs. The last draws the reference too: older commits did that in evaluate."""
Measured = dict[str, dict[str, dict[str, float]]]
"""By commit and stage: seconds, bytes."""


def measured(command: str, model: Path, run: Path, stage: str, sets: tuple[str, ...]) -> dict[str, float]:
    """CPU seconds and the most memory, bytes, of the command that runs a stage. Exits as it does, if it fails.

    Linux counts the memory of this process at the child's start too, so a small one has to call.
    """
    words = [command, "run", "--run-dir", str(run), "--model", str(model), "--executor", "inline", "--stages", stage]
    words += [word for each in ("compute.threads=1", *sets) for word in ("--set", each)]
    child = subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(child.returncode)
    return {"cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss * 1024}


def table(found: Measured, stages: tuple[str, ...]) -> str:
    """Two columns of seconds, their ratio, two of memory."""
    old, new = found
    head = ["stage", f"{old}, CPU s", f"{new}, CPU s", "ratio", f"{old}, GB", f"{new}, GB"]
    rows = [head, ["---"] * len(head)]
    for stage in stages:
        one, other = found[old][stage], found[new][stage]
        rows.append([stage, *_cells(one["cpu"], other["cpu"], one["memory"], other["memory"])])
    sums = [sum(found[name][stage]["cpu"] for stage in stages) for name in found]
    most = [max(found[name][stage]["memory"] for stage in stages) for name in found]
    rows.append(["in all", *_cells(*sums, *most)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(old: float, new: float, *memory: float) -> list[str]:
    return [f"{old:,.1f}", f"{new:,.1f}", f"{new / old:.2f}", *(f"{each / 1e9:.2f}" for each in memory)]


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--command", "commands", multiple=True, required=True, help="NAME=PATH of an adatsq-pipe. Twice.")
@click.option("--at-once", is_flag=True, help="All stages in one command.")
@click.option("--set", "sets", multiple=True, help="A setting of both runs, as in a run.")
@click.option("--run-dir", type=click.Path(path_type=Path), required=True, help="Keep both runs and figures here.")
def main(model: Path, commands: tuple[str, ...], at_once: bool, sets: tuple[str, ...], run_dir: Path) -> None:
    """Take a model through the same run with two commits, and print what each stage took."""
    paths = dict(each.split("=", 1) for each in commands if "=" in each)
    if len(paths) != 2 or len(commands) != 2:
        raise click.UsageError("--command NAME=PATH twice, with two names: the older commit first")
    run_dir.mkdir(parents=True, exist_ok=True)
    kept = run_dir / "measured.json"
    found: Measured = json.loads(kept.read_text()) if kept.exists() else {name: {} for name in paths}
    stages = ("all",) if at_once else STAGES
    for stage in stages:
        for name, path in paths.items():
            if stage not in found[name]:
                found[name][stage] = measured(path, model.absolute(), run_dir / name, stage, sets)
                kept.write_text(json.dumps(found))
    click.echo(table(found, stages))


if __name__ == "__main__":
    main()
