"""The command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 75 stopped (run again)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from PIL import Image

from adatsq_pipe.pipeline import config as configuration
from adatsq_pipe.pipeline import plan as planning
from adatsq_pipe.pipeline.commands import remote
from adatsq_pipe.pipeline.commands.inspect import inspect
from adatsq_pipe.pipeline.commands.shell import (
    fail,
    held,
    load_config,
    options,
    placed,
    places,
    plainly,
    run_dir_option,
    working,
)
from adatsq_pipe.pipeline.config import ConfigError, RunConfig
from adatsq_pipe.stages.architecture.support import refuse as accept
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.settings import DataSettings, ModelSettings
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.export.formats import _formats
from adatsq_pipe.stages.methods._layer import refuse
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.storage.rundir import RunDir


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="adatsq-pipe")
def main() -> None:
    """Quantize a diffusion transformer, in stages that resume."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def _accept(config: RunConfig) -> None:
    """Raise NotTaken if the model cannot be quantized, or not with these prompts and this call."""
    asked = [*config.settings[DataSettings].prompts, *config.settings[EvaluateSettings].prompts]
    accept(config.model, asked, config.given(), config.settings[ModelSettings].call)


@main.command()
@options
@click.option("--stages", default="all", show_default=True, help="all, a list a,b or a range a..c.")
@places
@plainly
def run(
    run_dir: str,
    model: str | None,
    preset: str | None,
    file: Path | None,
    sets: tuple[str, ...],
    stages: str,
    executor: str | None,
    address: str | None,
) -> None:
    """Run the stages that are missing. Interrupt it as you like; run it again to go on."""
    place = RunDir.open(run_dir)
    chosen = planning.choose(stages)
    extra = placed(executor, address)
    config = load_config(place, model, preset, file, (*sets, *extra))
    _accept(config)
    if "solve" in chosen:
        try:
            refuse(config.settings[Recipe], config.model)
        except StageError as error:
            raise ConfigError(str(error)) from None
    place.create()
    with held(place):
        configuration.keep_config(place, config)
        place.add_prompt_images(config.images)
        sys.exit(_run_locked(config, place, chosen))


def _run_locked(config: RunConfig, place: RunDir, chosen: list[str]) -> int:
    from adatsq_pipe.pipeline import report, runner

    def work(executors: Any, screen: Any) -> tuple[bool, bool]:
        steps, context, ran = runner.execute(config, place, chosen, executors, screen)
        with executors.closing():
            return ran, report.write(config, place, steps, context)

    ran, finished = working(config, place, work, f"adatsq-pipe run --run-dir {place.display()}")
    _closing(place, ran, finished)
    return 0


def _closing(place: RunDir, ran: bool, finished: bool) -> None:
    if not ran:
        click.echo("nothing to do: every stage asked for is done")
    if not finished:
        click.echo(f"next: adatsq-pipe run --run-dir {place.display()}   (the remaining stages)")
        return
    summary = json.loads((place.report / "summary.json").read_text())
    quality, bits, size = summary["quality"], summary["bits"], summary["size"]
    click.echo(
        f"{bits['weights_with_scales']:.2f}-bit weights, {bits['activations_mean']:.2f}-bit activations, "
        f"quantized layers {size['layer_ratio']:.2f}x smaller; PSNR to full precision "
        f"{quality['psnr']['mean']:.1f} dB on {quality['captions']} captions x {quality['seeds']} seeds"
    )
    if asked := quality["asked_for"]:
        click.echo("shows what was asked for: " + _scores(asked))
    click.echo(f"model     {place.display('model')}")
    click.echo(f"summary   {place.display('report/summary.json')}")
    click.echo(f"pictures  {place.display('report/side_by_side.png')}")
    click.echo("load it   import adatsq_pipe.stages.runtime; then from_pretrained on the model folder, as ever")
    click.echo(
        f"next      adatsq-pipe run --run-dir {place.display()} --set search.budget=3.6   "
        "(another budget, same weights)"
    )


def _scores(asked: dict[str, Any]) -> str:
    """Totals over the tasks, with 95 % intervals."""
    parts = [
        f"{name} {asked[key]['total']['mean']:.3f} +- {1.96 * asked[key]['total']['standard_error']:.3f}"
        for name, key in (("full precision", "full_precision"), ("quantized", "quantized"))
    ]
    difference = asked["difference"]
    return (
        f"{', '.join(parts)}, paired difference {difference['mean']:+.3f} +- {1.96 * difference['standard_error']:.3f}"
    )


@main.command()
@options
@click.option("--methods", "wanted", default="all", show_default=True, help="all, or a list a,b.")
@click.option("--bits", default="w4a4,w3a3", show_default=True, help="Pairs of weight and activation bits.")
@click.option("--sweep", is_flag=True, help="Turn each method's main knob too, and show its best.")
@places
@plainly
def compare(
    run_dir: str,
    model: str | None,
    preset: str | None,
    file: Path | None,
    sets: tuple[str, ...],
    wanted: str,
    bits: str,
    sweep: bool,
    executor: str | None,
    address: str | None,
) -> None:
    """Run methods on the same captures and judge them alike. Interrupt it as you like; run it again to go on."""
    from adatsq_pipe.pipeline import compare as comparing

    place = RunDir.open(run_dir)
    extra = placed(executor, address)
    first = load_config(place, model, preset, file, (*sets, *extra))
    _accept(first)

    def load(recipe: Sequence[str]) -> RunConfig:
        return configuration.load(preset=preset, file=file, sets=(*recipe, *sets, *extra), model=model, kept=None)

    planned = comparing.rows(wanted, bits, sweep=sweep, load=load)
    place.create()
    with held(place):
        place.add_prompt_images(first.images)
        again = " ".join(["adatsq-pipe", *sys.argv[1:]])
        found = working(planned[0].config, place, lambda e, s: comparing.execute(planned, place, e, s), again)
    if not found.rows:
        fail("no row could be run; the reasons are above", 1)
    text = (place.path / "compare.md").read_text()
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        click.echo(text)
    click.echo(f"rows      {place.display('compare.parquet')}\nplot      {place.display('compare.png')}")
    if found.failed:
        fail(f"{found.failed} rows failed; the reasons are below the table", 1)


@main.command()
@click.argument("model", default="")
@click.option("--prompt", "prompts", multiple=True, required=True, help="What to draw; repeat for several.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="x.png, or x.gif of a video."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", type=int, help="Denoising steps [default: what the folder recommends].")
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--scale", default=8, show_default=True, help="Size of a drawn pixel, for small pictures.")
@plainly
def sample(
    model: str,
    prompts: tuple[str, ...],
    out: Path,
    seed: int,
    steps: int | None,
    device: str,
    dtype: str,
    scale: int,
) -> None:
    """Draw from MODEL: a pipeline folder, full precision or quantized, or a built-in name such as scenes/flux-dev."""
    folder = configuration.model_folder(model)
    said = configuration.sampling(folder)
    if said.get("world"):
        configuration.in_the_world(prompts, said["world"], "--prompt")
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise ConfigError(f"--out {out}: {out.suffix or 'no ending'} is no picture format; write .png, or .gif")
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.resolve().parent}; make it first")
    from adatsq_pipe.stages.denoiser import sample

    call = {**said.get("call", {}), **({"num_inference_steps": steps} if steps else {})}
    pictures = sample.draw(folder, prompts, seed=seed, call=call, device=device, dtype=dtype)
    sample.save(pictures, out, scale=scale)
    click.echo(f"{out}: {len(prompts)} drawn from {folder}")


def _plan_of(run_dir: str, model: str | None, preset: str | None, file: Path | None, sets: tuple[str, ...]) -> Any:
    place = RunDir.open(run_dir)
    place.check()
    return planning.plan(load_config(place, model, preset, file, sets), place)[0]


@main.command()
@options
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@plainly
def status(
    run_dir: str, model: str | None, preset: str | None, file: Path | None, sets: tuple[str, ...], as_json: bool
) -> None:
    """What is done, from the run directory alone."""
    steps = _plan_of(run_dir, model, preset, file, sets)
    if as_json:
        click.echo(json.dumps(planning.as_json(steps), indent=1))
        return
    for step in steps:
        of = f"/{step.expected}" if step.expected is not None else ""
        click.echo(f"{step.stage.name:9} {step.state:8} {step.done}{of} units   {step.fingerprint[:16]}")
        for unit, error in step.failed.items():
            click.echo(f"{'':9} {unit} failed: {error}")


@main.command()
@options
@plainly
def why(run_dir: str, model: str | None, preset: str | None, file: Path | None, sets: tuple[str, ...]) -> None:
    """What `run` would do with these options, and which field makes it so."""
    steps = _plan_of(run_dir, model, preset, file, sets)
    rerun: set[str] = set()
    for step in steps:
        name = step.stage.name
        if step.complete:
            click.echo(f"{name:9} is done; it would not run")
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


@main.command()
@run_dir_option
@plainly
def verify(run_dir: str) -> None:
    """Hash again everything that this run directory vouches for."""
    place = RunDir.open(run_dir)
    place.check()
    checked, wrong = planning.verify(place)
    for stage, unit, what in wrong:
        click.echo(f"{stage} {unit}: {what}", err=True)
    if wrong:
        fail(f"{len(wrong)} of {checked} units are damaged; `adatsq-pipe run` does them again", 1)
    click.echo(f"{checked} units are as their markers say")


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--format", "wanted", required=True, help=f"One of {', '.join(_formats.formats())}.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A folder that is not there yet [default: RUN/exports/FORMAT, or MODEL-FORMAT].",
)
@plainly
def export(run: Path, wanted: str, out: Path | None) -> None:
    """Turn the quantized model of RUN (a run directory, or the model folder itself) into another format."""
    known = _formats.formats()
    if wanted not in known:
        raise ConfigError(f"--format {wanted}: there are {', '.join(known)}")
    of_run = (run / "model" / "model_index.json").exists()
    if not of_run and not (run / "model_index.json").exists():
        raise ConfigError(f"{run} has no quantized model; finish it with: adatsq-pipe run --run-dir {run}")
    source = run / "model" if of_run else run
    out = out or (run / "exports" / wanted if of_run else run.with_name(f"{run.name}-{wanted}"))
    if out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"--out {out} lies inside the model that is exported; name a folder beside it")
    said = _formats.export(wanted, source.resolve(), out.resolve())
    click.echo(f"{out}: {said}")


main.add_command(inspect)
main.add_command(remote.submit)
main.add_command(remote.attach)


if __name__ == "__main__":
    main()
