"""`plan`: what a run would take, before anything is spent: units, disk, memory, forward passes, hours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adatsq_pipe.pipeline import config as configuration
from adatsq_pipe.pipeline.commands.layout import aligned, many
from adatsq_pipe.pipeline.commands.shell import example, user_errors
from adatsq_pipe.pipeline.config import PRESETS, RunConfig
from adatsq_pipe.pipeline.devices import check_here
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.architecture import support
from adatsq_pipe.stages.architecture.memory import shown
from adatsq_pipe.stages.base import gpus
from adatsq_pipe.stages.base.settings import ComputeSettings, DataSettings, ModelSettings
from adatsq_pipe.stages.text.encoders import TextEncoderSettings, check_encoders
from adatsq_pipe.storage.model_index import INDEX

if TYPE_CHECKING:
    from adatsq_pipe.pipeline.estimate.estimate import Estimate, StageEstimate


@click.command(
    "plan",
    short_help="Show what a run would take: units, disk, memory, hours.",
    epilog=example("plan /path/to/pipeline-folder --gpus 8 --device h100"),
)
@click.argument("model", default="")
@click.option("--preset", type=click.Choice(PRESETS), help="Settings to start from [default: w4a4].")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.option("--set", "sets", multiple=True, metavar="TABLE.KEY=VALUE", help="Change one setting; repeatable.")
@click.option("--device", default="", metavar="NAME", help="Hours and memory on this GPU, e.g. h100 or rtx4090.")
@click.option("--gpus", type=click.IntRange(1, 10_000), help="Workers, one on each GPU of --device [default: 1].")
@click.option("--measure", is_flag=True, help="Hours on this machine: time one block of each kind here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@user_errors
def plan(
    model: str, preset: str | None, file: Path | None, sets: tuple[str, ...], device: str, gpus: int | None,
    measure: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show what a run of MODEL would take before it is started: units, bytes on disk, memory of a worker, forward
    passes, and hours on named hardware or, measured, on this machine.

    MODEL is a pipeline folder, with weights or with configs alone, org/name of the hub, a built-in name, or a
    transformer's config.json or its folder. No weight is loaded.
    """
    if device and measure:
        raise ConfigError("--device names other hardware, and --measure times this machine; give one of them")
    if gpus and not device:
        raise ConfigError(f"--gpus {gpus} says how many, not which: add --device NAME")
    config = _config(model, preset, file, sets, on_gpu=bool(device))
    if measure:
        check_here(config.settings[ComputeSettings].device, instead="set compute.device=cpu")
    from adatsq_pipe.pipeline.estimate.estimate import estimate  # imports torch

    found = estimate(config, device=device, gpus=gpus or 0, measure=measure, subject=None)
    click.echo(json.dumps(found.plain(), indent=1) if as_json else text(found))


def _config(model: str, preset: str | None, file: Path | None, sets: tuple[str, ...], *, on_gpu: bool) -> RunConfig:
    """The settings of the run; a bare transformer's are those of its folder. Raises ConfigError, NotTaken."""
    path = configuration.asked_folder(model or None, file, sets, weights=False)
    if not path.exists():
        raise ConfigError(f"{path} does not exist; MODEL is a pipeline folder, a built-in name or a config.json")
    bare = path.is_file() or ((path / "config.json").is_file() and not (path / INDEX).exists())
    folder = str(path.parent if path.is_file() else path) if bare else model or None
    config = configuration.load(
        preset=preset,
        file=file,
        sets=sets,
        model=folder,
        previous=None,
        count_gpus=lambda cluster: 1 if on_gpu else gpus.visible_gpus(),
    )
    if on_gpu and config.settings[ComputeSettings].device == "cpu":
        compute = config.settings[ComputeSettings].model_copy(update={"device": "cuda"})
        config = replace(config, settings=config.settings.replaced(compute))
    if bare:
        return replace(config, model=path)
    called = config.settings[ModelSettings].call
    support.check_pipeline(
        config.model, prompt_arguments=config.prompt_arguments(DataSettings), call=called, configs_suffice=True
    )
    check_encoders(config.model, config.settings[TextEncoderSettings])
    return config


def text(found: Estimate) -> str:
    """The estimate as text."""
    head = [
        ("model", found.model),
        ("denoiser", f"{many(found.parameters)} parameters, {found.layers} linears are quantized"),
        ("weights", f"{shown(found.weights)} with all components, in the compute dtype"),
        ("a draw", found.call),
        ("workers", f"{found.workers}" + (f" x {found.device}" if found.device else "")),
    ]
    timed = found.wall_seconds is not None
    columns = ["stage", "units", "disk", "of a unit", "memory", "main memory", "passes", "TFLOPs"]
    rows = [[*columns, *(["worker", "wall"] if timed else [])]]
    rows += [_row(stage, found.device_memory is not None, timed) for stage in found.stages]
    units, tflops = sum(stage.units for stage in found.stages), sum(stage.tflops for stage in found.stages)
    whole = ["in all", str(units), shown(found.disk), "", shown(found.memory), shown(found.host), str(found.passes)]
    worker = sum(stage.worker_seconds or 0.0 for stage in found.stages)
    times = [duration(worker), duration(found.wall_seconds or 0.0)] if timed else []
    rows.append([*whole, f"{tflops:,.0f}", *times])
    where = "of a worker on its GPU; main memory in all is of all workers" if found.device_memory else (
        "of a worker at most, in main memory; main memory in all is of all workers"
    )  # fmt: skip
    notes = [*found.notes, f"the assembled folder takes {shown(found.folder)} of the disk", f"memory: {where}"]
    if found.cast:
        notes.append(f"workers share cast weights: {shown(found.cast)} of disk on each machine until the run ends")
    notes += [] if timed else ["no hours: name a --device (and --gpus), or --measure on this machine"]
    lines = [*notes, *(f"assumed: {line}" for line in found.assumed)]
    return "\n\n".join((aligned(head), aligned(rows), "\n".join(f"  {line}" for line in lines)))


def _row(stage: StageEstimate, on_gpu: bool, timed: bool) -> list[str]:
    host = shown(stage.host) if on_gpu else "-"
    memory = shown(stage.memory) if stage.memory else "-"
    tflops = f"{stage.tflops:,.3g}" if stage.tflops < 100 else f"{stage.tflops:,.0f}"
    times = [duration(stage.worker_seconds or 0.0), duration(stage.wall_seconds or 0.0)] if timed else []
    return [
        stage.stage, str(stage.units), shown(stage.disk), shown(int(stage.disk_of_unit)), memory, host,
        str(stage.passes) if stage.passes else "-", tflops, *times,
    ]  # fmt: skip


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
