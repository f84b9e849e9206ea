"""`status`, `why` and `verify`: what is done, what would run and why, and whether the bytes are intact."""

from __future__ import annotations

import json
from pathlib import Path

import click

from adatsq_pipe.pipeline import finished
from adatsq_pipe.pipeline import plan as planning
from adatsq_pipe.pipeline.commands.shell import example, fail, options, run_dir_option, user_errors
from adatsq_pipe.pipeline.plan import Step
from adatsq_pipe.pipeline.request import load_config
from adatsq_pipe.storage.rundir import RunDir

PUBLISHED = "published"
"""Stands in the place of a stage's name for the model and the report of a finished run."""


def _plan_of(
    run_dir: str, model: str | None, preset: str | None, file: Path | None, sets: tuple[str, ...]
) -> tuple[list[Step], str]:
    """The plan, and what is wrong with the published model and report of a finished run ("" if nothing is)."""
    place = RunDir.open(run_dir)
    place.check()
    steps, context = planning.plan(load_config(place, model, preset, file, sets), place)
    return steps, finished.damage(place, context.fingerprints) if steps[-1].complete else ""


@click.command(
    short_help="Show what is done, from files alone.",
    epilog=example("status --run-dir adatsq-run"),
)
@options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@user_errors
def status(
    run_dir: str, model: str | None, preset: str | None, file: Path | None, sets: tuple[str, ...], as_json: bool
) -> None:
    """Show what is done. Reads the run directory alone: no torch, no cluster."""
    steps, published = _plan_of(run_dir, model, preset, file, sets)
    if as_json:
        row = [{"stage": PUBLISHED, "state": "damaged", "what": published}] if published else []
        click.echo(json.dumps([*planning.as_json(steps), *row], indent=1))
        return
    for step in steps:
        of = f"/{step.expected}" if step.expected is not None else ""
        click.echo(f"{step.stage.name:9} {step.state:8} {step.done}{of} units   {step.fingerprint[:16]}")
        for unit, error in step.failed.items():
            click.echo(f"{'':9} {unit} failed: {error}")
        for unit, what in step.damaged:
            click.echo(f"{'':9} {unit} is damaged: {what}")
    if published:
        click.echo(f"{PUBLISHED:9} damaged  {published}; `adatsq-pipe run` writes it again")


@click.command(
    short_help="Show what would run, and which field causes it.",
    epilog=example("why --run-dir adatsq-run --set search.budget=3.6"),
)
@options
@user_errors
def why(run_dir: str, model: str | None, preset: str | None, file: Path | None, sets: tuple[str, ...]) -> None:
    """Show what `run` would do with these options, and which field causes it."""
    steps, published = _plan_of(run_dir, model, preset, file, sets)
    rerun: set[str] = set()
    for step in steps:
        name = step.stage.name
        if step.complete:
            click.echo(f"{name:9} is done: it would not run")
            continue
        rerun.add(name)
        first = [need for need in step.stage.needs if need in rerun]
        own = [c for c in step.changed if not c[0].startswith("needs.")]
        reasons = [f"{unit} is damaged: {what}" for unit, what in step.damaged]
        reasons += [f"{field}: {old!r} -> {new!r}" for field, old, new in own]
        if not own and first:
            reasons.append(f"{', '.join(first)} would run first")
        if not reasons:
            of = f" of {step.expected}" if step.expected is not None else ""
            reasons.append(f"{step.done}{of} units are done" if step.done else "it has not run yet")
        click.echo(f"{name:9} would run: {'; '.join(reasons)}")
    if published:
        click.echo(f"{PUBLISHED:9} would be written again: {published}")


@click.command(
    short_help="Re-hash every committed file and report damage.",
    epilog=example("verify --run-dir adatsq-run"),
)
@run_dir_option
@user_errors
def verify(run_dir: str) -> None:
    """Re-hash every committed file and report damage."""
    place = RunDir.open(run_dir)
    place.check()
    checked, wrong = planning.verify(place)
    for stage, unit, what in wrong:
        click.echo(f"{stage} {unit}: {what}", err=True)
    if wrong:
        fail(f"{len(wrong)} of {checked} units are damaged; `adatsq-pipe run` computes them again", 1)
    click.echo(f"{checked} units verified")
