"""What a run of well-known full-size models would take: `python -m tests.bench.plans`.

Each model's published configs (`tests/bench/configs`, transformers in `tests/zoo/configs`) are written as a folder
without weights, and `adatsq-pipe plan` is asked for 8 H100 and for one RTX 4090, in bfloat16, with otherwise default
settings. Prints a table, with the CPU seconds and the memory of the command itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

CONFIGS = Path(__file__).parent / "configs"
TRANSFORMERS = Path(__file__).parents[1] / "zoo" / "configs"
HARDWARE = (("h100", 8), ("rtx4090", 1))


def write_folder(name: str, folder: Path) -> None:
    """The pipeline folder of a model, configs alone."""
    model = json.loads((CONFIGS / f"{name}.json").read_text())
    index: dict[str, Any] = model["model_index"]
    config = (TRANSFORMERS / f"{model['transformer']}.json").read_text()
    parts = {part: config for part in index if part.startswith("transformer")}
    parts |= {part: json.dumps(values) for part, values in model["components"].items()}
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "sampling.json").write_text(json.dumps({"call": model["call"]}))
    for part, text in parts.items():
        (folder / part).mkdir()
        (folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")).write_text(text)


def planned(folder: Path, device: str, gpus: int) -> tuple[dict[str, Any], float, float]:
    """The plan as JSON, and the CPU seconds and GB of the command."""
    command = [sys.executable, "-m", "adatsq_pipe.pipeline.commands.cli", "plan", str(folder)]
    command += ["--device", device, "--gpus", str(gpus), "--set", "compute.dtype=bfloat16", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return json.loads(said), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9


def row(name: str, folder: Path) -> str:
    """A line of the table."""
    cells, found, seconds, memory = [name], dict[str, Any](), 0.0, 0.0
    hours = []
    for device, gpus in HARDWARE:
        found, taken, held = planned(folder, device, gpus)
        hours.append(f"{found['total']['wall_seconds'] / 3600:.2f}")
        seconds, memory = max(seconds, taken), max(memory, held)
        if device == HARDWARE[0][0]:
            cells += [
                f"{found['parameters'] / 1e9:.2f}", str(found["layers"]), str(found["total"]["units"]),
                f"{found['total']['passes']:,}", f"{found['total']['disk'] / 1e9:.0f}", f"{found['folder'] / 1e9:.1f}",
                f"{found['total']['memory'] / 1e9:.0f}", f"{found['total']['host'] / 1e9:.0f}",
            ]  # fmt: skip
    fits = "blocks in turn" if any("take turns" in note for note in found["notes"]) else "whole"
    fits = "does not fit" if any("does not fit:" in note for note in found["notes"]) else fits
    cells += [*hours, f"{found['total']['memory'] / 1e9:.0f}, {fits}", f"{seconds:.0f}", f"{memory:.2f}"]
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--only", help="One model, by the name of its file.")
def main(only: str | None) -> None:
    """Print the table."""
    click.echo(
        "| model | 10^9 parameters | linears | units | calls | disk, GB | model folder, GB | an H100 worker, GB "
        "| main memory of 8, GB | hours on 8 H100 | hours on 1 RTX 4090 | its worker, GB | plan, CPU s | plan, GB |"
    )
    click.echo("|" + "---|" * 14)
    with tempfile.TemporaryDirectory() as scratch:
        for path in sorted(CONFIGS.glob(f"{only or '*'}.json")):
            folder = Path(scratch) / path.stem
            write_folder(path.stem, folder)
            click.echo(row(path.stem, folder))


if __name__ == "__main__":
    main()
