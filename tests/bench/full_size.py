"""What a run of a full-size model costs, stage by stage: `python -m tests.bench.full_size dit-xl|wan-1.3b`.

The denoiser has its published config and random weights in bfloat16; the pipeline is written once, to a folder of the
user's cache. It goes through the whole run, with few steps and captions. By stage: seconds on the clock and of CPU,
model, algebra and overhead, the most main memory that a worker held, bytes and files on disk. Then what `plan` says of
runs of other full-size models on one H100. With `--run-dir`, a run that was stopped goes on with the same command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from adatsq_pipe.pipeline import plan as planning
from adatsq_pipe.pipeline.estimate.devices import LINK, PRODUCTS, TRAFFIC, device_of
from adatsq_pipe.pipeline.estimate.hours import COMMIT, DISK, READ
from adatsq_pipe.pipeline.request import load_config
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.storage.rundir import RunDir
from tests.bench import full_size_models, plans

FORETOLD = ("flux1-dev", "wan2.2-t2v-a14b", "qwen-image")
DEVICE = "h100"
SUMMED = ("units", "total", "cpu", "model", "algebra", "disk", "files")
"""What the table's last line adds up."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "adatsq-pipe" / "full-size"


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What a stage's units took, all together. Seconds, bytes."""

    stage: str
    units: int
    total: float
    cpu: float
    model: float
    algebra: float
    memory: int
    """Of the worker that held most."""
    disk: int
    files: int

    @property
    def overhead(self) -> float:
        return self.total - self.model - self.algebra

    def cells(self) -> list[str]:
        """Of the table."""
        seconds = (self.cpu, self.total, self.model, self.algebra, self.overhead)
        return [
            self.stage, str(self.units), *(f"{each:,.1f}" for each in seconds), f"{self.memory / 1e9:.2f}",
            f"{self.disk / 1e6:,.1f}", f"{self.files:,}",
        ]  # fmt: skip


COLUMNS = (
    "stage", "units", "CPU, s", "units, s", "model, s", "algebra, s", "overhead, s", "memory, GB", "disk, MB", "files",
)  # fmt: skip


def cost_of(context: Context, stage: str, folder: Path) -> StageCost:
    """Of the markers of a stage, and of the files of its `folder`."""
    found = [marker.seconds for marker in context.manifest(stage).markers().values() if marker.seconds.get("total")]
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]

    def of(kind: str) -> float:
        return sum(seconds.get(kind, 0.0) for seconds in found)

    return StageCost(
        stage=stage, units=len(found), total=of("total"), cpu=of("cpu"), model=of("model"), algebra=of("algebra"),
        memory=int(max((seconds.get("resident", 0.0) for seconds in found), default=0.0)),
        disk=sum(sizes), files=len(sizes),
    )  # fmt: skip


def costs(run: Path) -> list[StageCost]:
    """Of every stage of a run, in their order."""
    place = RunDir.open(str(run))
    steps, context = planning.plan(load_config(place, None, None, None, ()), place)
    return [cost_of(context, step.stage.name, run / step.stage.name) for step in steps]


def table(found: list[StageCost]) -> str:
    """With a line of sums, where memory is the most."""
    whole = StageCost(
        stage="in all",
        memory=max(one.memory for one in found),
        **{name: sum(getattr(one, name) for one in found) for name in SUMMED},
    )
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(one.cells() for one in (*found, whole))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def settings(name: str, *, steps: int, captions: int, seeds: int, threads: int, call: dict[str, int]) -> list[str]:
    """Settings of the run. A batch holds all captions."""
    known = full_size_models.MODELS[name].captions
    if 2 * captions > len(known):
        raise click.BadParameter(f"{captions} captions, and as many held-out ones: {name} has {len(known)} in all")
    ours, held_out = list(known[:captions]), list(known[-captions:])
    calls = {"num_inference_steps": steps, **call}
    return [
        "compute.dtype=bfloat16", f"compute.threads={threads}", f"data.prompts={ours}", f"data.batch={captions}",
        f"evaluate.prompts={held_out}", f"evaluate.batch={captions}", f"evaluate.seeds={seeds}",
        *(f"model.call.{key}={value}" for key, value in calls.items()),
    ]  # fmt: skip


def quantized(model: Path, run: Path, sets: list[str], *, inline: bool, workers: int) -> None:
    """The whole run, in a process of its own. Exits as it does, if it fails."""
    command = [sys.executable, "-m", "adatsq_pipe.pipeline.commands.cli", "run", "--run-dir", str(run)]
    command += ["--model", str(model), *(["--executor", "inline"] if inline else [])]
    sets = sets if inline else [*sets, f"cluster.workers={workers}"]
    done = subprocess.run([*command, *(word for each in sets for word in ("--set", each))])
    if done.returncode:
        raise SystemExit(done.returncode)


def foretold(names: tuple[str, ...]) -> str:
    """What `plan` says of runs of full-size models on one `DEVICE`, by stage, and what it takes for granted."""
    device, rows = device_of(DEVICE), list[list[str]]()
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            folder = Path(scratch) / name
            plans.write_folder(name, folder)
            plan: dict[str, Any] = plans.planned(folder, DEVICE, 1)[0]
            hours = [stage["wall_seconds"] / 3600 for stage in plan["stages"]]
            rows = rows or [["hours", *(stage["stage"] for stage in plan["stages"]), "in all"]]
            rows.append([name, *(f"{each:.2f}" for each in (*hours, sum(hours)))])
    rows.insert(1, ["---"] * len(rows[0]))
    constants = (
        f"{DEVICE}: {device.half / 1e12:.0f} TFLOP/s in bfloat16 of which products reach {PRODUCTS:g}, "
        f"{device.float32 / 1e12:.0f} in float32, {device.bandwidth / 1e12:.2f} TB/s of which elementwise operations "
        f"reach {TRAFFIC:g}, a link of {device.link / 1e9:.0f} GB/s of which copies reach {LINK:g}; a unit takes "
        f"{1000 * COMMIT:.0f} ms besides its work, a worker writes {DISK / 1e9:g} and reads {READ / 1e9:g} GB/s"
    )
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", constants])


@click.command()
@click.argument("name", type=click.Choice(list(full_size_models.MODELS)))
@click.option("--steps", default=4, show_default=True, type=click.IntRange(2), help="Denoising steps.")
@click.option("--captions", default=2, show_default=True, type=click.IntRange(1), help="And as many held-out ones.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Draws of a held-out caption.")
@click.option("--inline/--ray", default=True, show_default=True, help="In one process, or with Ray.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="With --ray.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="CPU threads of a worker.")
@click.option("--side", type=click.IntRange(16), help="Height and width of a clip [default: 128].")
@click.option("--frames", type=click.IntRange(1), help="Frames of a clip [default: 5].")
@click.option("--blocks", type=click.IntRange(1), help="Fewer blocks, each of full width [default: as published].")
@click.option("--set", "more", multiple=True, metavar="TABLE.KEY=VALUE", help="A further setting of the run.")
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help=f"Of the models [default: {CACHE}].")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Keep the run here [default: a temporary folder].")
@click.option("--foretell/--no-foretell", default=True, help="Say what `plan` says of other models on one H100.")
def main(
    name: str, steps: int, captions: int, seeds: int, inline: bool, workers: int, threads: int, side: int | None,
    frames: int | None, blocks: int | None, more: tuple[str, ...], cache: Path, run_dir: Path | None, foretell: bool,
) -> None:  # fmt: skip
    """Take a full-size model with random weights through the whole run, and print what each stage took."""
    call = {key: value for key, value in (("height", side), ("width", side), ("num_frames", frames)) if value}
    if unknown := [key for key in call if key not in full_size_models.MODELS[name].options]:
        raise click.UsageError(f"{name} draws pictures of one size: leave out --side and --frames ({unknown[0]})")
    sets = settings(name, steps=steps, captions=captions, seeds=seeds, threads=threads, call=call)
    model = full_size_models.written(name, cache, blocks)
    with tempfile.TemporaryDirectory() as scratch:
        run = run_dir or Path(scratch) / "run"
        quantized(model, run, [*sets, *more], inline=inline, workers=workers)
        summary = json.loads((run / "report" / "summary.json").read_text())
        walls = ", ".join(f"{stage} {part['wall']:.0f}" for stage, part in summary["seconds"].items())
        click.echo(table(costs(run)))
        click.echo(f"\non the clock, s: {walls}")
        click.echo(
            f"PSNR to full precision {summary['quality']['psnr']['mean']:.1f} dB (of random weights: it says little)"
        )
    if foretell:
        click.echo(f"\n{foretold(FORETOLD)}")


if __name__ == "__main__":
    main()
