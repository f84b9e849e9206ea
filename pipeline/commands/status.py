"""`status`, `why` and `verify`: what is done, what would run and why, and whether the bytes are intact."""

from __future__ import annotations

import gc
import json
import math
import sys
from pathlib import Path

import click

from adatsq_pipe.pipeline import compute, finished
from adatsq_pipe.pipeline import plan as planning
from adatsq_pipe.pipeline.commands.layout import print_json
from adatsq_pipe.pipeline.commands.look import Choice, look, space_text, summary_lines, units_text
from adatsq_pipe.pipeline.commands.shell import (
    example,
    fail,
    json_option,
    options,
    run_argument,
    run_dir_of,
    run_dir_option,
    user_errors,
)
from adatsq_pipe.pipeline.plan import Step
from adatsq_pipe.pipeline.request import load_config
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.storage.fingerprint import Plain
from adatsq_pipe.storage.rundir import RunDir

LEAST_INTERVAL = 0.1
PUBLISHED = "published"
"""Stands in the place of a stage's name for the model and the report of a finished run."""


def _plan_of(place: RunDir, choice: Choice) -> tuple[list[Step], str, str]:
    """The plan, what is wrong with the published model and report of a finished run ("" if nothing is), and what the
    run computes on."""
    config = load_config(place, choice.model, choice.preset, choice.file, choice.sets)
    steps, context = planning.plan(config, place)
    device = compute.text(config.settings[ComputeSettings], config.basis)
    return steps, finished.damage(place, context.fingerprints) if steps[-1].complete else "", device


def _interval(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (LEAST_INTERVAL <= value < math.inf):
        raise click.BadParameter(f"give {LEAST_INTERVAL:g} seconds or more (got {value:g})")
    return value


@click.command(
    short_help="Show what is done, from files alone.",
    epilog=example("status adatsq-run --watch"),
)
@run_argument
@options
@click.option("--watch", is_flag=True, help="Keep showing it until the run ends.")
@click.option(
    "--interval",
    type=float,
    callback=_interval,
    metavar="SECONDS",
    help="Seconds between two looks of --watch [default: 2; 15 at a URL].",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch all of it in a line for each change.")
@user_errors
def status(
    named: str | None,
    run_dir: str,
    model: str | None,
    preset: str | None,
    file: Path | None,
    sets: tuple[str, ...],
    watch: bool,
    interval: float | None,
    as_json: bool,
) -> None:
    """Show what is done of RUN. Reads the run directory alone: no torch, no cluster.

    With --watch the run may be on another machine. It exits as the run ends: 0 when all stages are done, 1 when units
    failed or are damaged, 75 when it was stopped before its end. Ctrl-C leaves with 130.
    """
    if interval is not None and not watch:
        raise click.UsageError("--interval is for --watch; add it")
    place = RunDir.open(run_dir_of(named, run_dir))
    place.check()
    choice = Choice(model=model, preset=preset, file=file, sets=sets)
    if watch:
        from adatsq_pipe.pipeline.commands.watch import follow  # imports rich, which `status` alone needs not

        sys.exit(follow(place, choice, interval, as_json=as_json))
    gc.disable()  # thousands of markers that live to the end of the process: to look for cycles in them takes long
    now = look(place, choice)
    published = now.published_damage
    if as_json:
        row = [{"stage": PUBLISHED, "state": "damaged", "what": published}] if published else []
        click.echo(json.dumps([*planning.as_json([stage.step for stage in now.stages]), *row], indent=1))
        return
    for stage in now.stages:
        step = stage.step
        words = (f"{stage.name:9} {step.state:8} {units_text(stage)}", step.fingerprint[:16], space_text(step))
        click.echo("   ".join(word for word in words if word))
        for unit, error in step.failed.items():
            click.echo(f"{'':9} {unit} failed: {error}")
        for unit, what in step.damaged:
            click.echo(f"{'':9} {unit} is damaged: {what}")
    if published:
        click.echo(f"{PUBLISHED:9} damaged  {published}; `adatsq-pipe run` writes it again")
    for line in summary_lines(now):
        click.echo(line)


@click.command(
    short_help="Show what would run, and which field causes it.",
    epilog=example("why --run-dir adatsq-run --set search.budget=3.6"),
)
@run_argument
@options
@json_option
@user_errors
def why(
    named: str | None,
    run_dir: str,
    model: str | None,
    preset: str | None,
    file: Path | None,
    sets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show what `run` would do of RUN with these options, and which field causes it."""
    place = RunDir.open(run_dir_of(named, run_dir))
    place.check()
    steps, published, device = _plan_of(place, Choice(model=model, preset=preset, file=file, sets=sets))
    reasons = _reasons(steps)
    if as_json:
        rows: list[dict[str, Plain]] = [
            {
                "stage": step.stage.name, "runs": step.stage.name in reasons,
                "reasons": reasons.get(step.stage.name, []), "changed": planning.changes(step),
            }
            for step in steps
        ]  # fmt: skip
        row = [{"stage": PUBLISHED, "runs": True, "reasons": [published], "changed": []}] if published else []
        print_json([*rows, *row])
        return
    for step in steps:
        name = step.stage.name
        found = f"would run: {'; '.join(reasons[name])}" if name in reasons else "is done: it would not run"
        click.echo(f"{name:9} {found}")
    click.echo(f"{'compute':9} {device}")
    if published:
        click.echo(f"{PUBLISHED:9} would be written again: {published}")


def _reasons(steps: list[Step]) -> dict[str, list[str]]:
    """Of the stages that would run: why."""
    found = dict[str, list[str]]()
    for step in steps:
        if step.complete:
            continue
        first = [need for need in step.stage.needs if need in found]
        own = [c for c in step.changed if not c[0].startswith("needs.")]
        reasons = [f"{unit} is damaged: {what}" for unit, what in step.damaged]
        reasons += [f"{field}: {old!r} -> {new!r}" for field, old, new in own]
        if not own and first:
            reasons.append(f"{', '.join(first)} would run first")
        if not reasons:
            of = f" of {step.expected}" if step.expected is not None else ""
            reasons.append(f"{step.done}{of} units are done" if step.done else "it has not run yet")
        found[step.stage.name] = reasons
    return found


@click.command(
    short_help="Re-hash every committed file and report damage.",
    epilog=example("verify --run-dir adatsq-run"),
)
@run_argument
@run_dir_option
@json_option
@user_errors
def verify(named: str | None, run_dir: str, as_json: bool) -> None:
    """Re-hash every committed file of RUN and report damage."""
    place = RunDir.open(run_dir_of(named, run_dir))
    place.check()
    checked, wrong = planning.verify(place)
    if as_json:
        print_json(
            {
                "checked": checked,
                "damaged": [{"stage": stage, "unit": unit, "what": what} for stage, unit, what in wrong],
            }
        )
    for stage, unit, what in wrong if not as_json else ():
        click.echo(f"{stage} {unit}: {what}", err=True)
    if wrong:
        fail(f"{len(wrong)} of {checked} units are damaged; `adatsq-pipe run` computes them again", 1)
    if not as_json:
        click.echo(f"{checked} units verified")
