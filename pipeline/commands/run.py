"""`run`: the stages that are missing, and what the finished run says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from adatsq_pipe.pipeline import config as configuration
from adatsq_pipe.pipeline import finished, runner
from adatsq_pipe.pipeline import plan as planning
from adatsq_pipe.pipeline.commands import completion
from adatsq_pipe.pipeline.commands.layout import print_json
from adatsq_pipe.pipeline.commands.shell import (
    cluster_options,
    cluster_overrides,
    example,
    options,
    run_lock,
    user_errors,
    with_executors,
)
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.devices import check_device
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.kind_quality import line, metric_line, score_line
from adatsq_pipe.pipeline.plan import Step
from adatsq_pipe.pipeline.request import check_model, kept_request, load_to_run, read_request, write_request
from adatsq_pipe.pipeline.resolved import as_plain, as_toml, resolved
from adatsq_pipe.pipeline.summary import PAGE, read_summary
from adatsq_pipe.pipeline.toml_tables import parse_set
from adatsq_pipe.stages.allocation.points import AssembleSettings
from adatsq_pipe.stages.base.compression import resized
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.stage import STAGES
from adatsq_pipe.stages.methods._layer import check_recipe
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.storage.rundir import RunDir

STAGES_HELP = f"Stages to run: all, a list, or a range (solve..evaluate). One of {', '.join(STAGES)}."


@click.command(
    short_help="Quantize a model: run the stages that are missing.",
    epilog=example("run --run-dir adatsq-run --set search.budget=3.6"),
)
@options
@click.option("--stages", default="all", show_default=True, shell_complete=completion.stages, help=STAGES_HELP)
@cluster_options
@click.option("--show-config", is_flag=True, help="Print every setting and where it comes from, and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary, or with --show-config the settings, as JSON.")
@user_errors
def run(
    run_dir: str,
    model: str | None,
    preset: str | None,
    file: Path | None,
    sets: tuple[str, ...],
    stages: str,
    executor: str | None,
    address: str | None,
    show_config: bool,
    as_json: bool,
) -> None:
    """Quantize a model: run the stages that are missing.

    You can interrupt a run at any time. Run the same command again to resume.
    """
    place = RunDir.open(run_dir)
    chosen = planning.choose(stages)
    overrides = cluster_overrides(executor, address)
    config = load_to_run(place, model, preset, file, (*sets, *overrides))
    if show_config:
        previous = read_request(place.path) if preset is None and place.exists() else None
        name, layers = configuration.layers(preset=preset, file=file, sets=sets, model=model, previous=previous)
        layers["--executor or --address"] = parse_set(overrides)
        tables = resolved(config, name, layers)
        print_json(as_plain(tables)) if as_json else click.echo(as_toml(tables))
        return
    check_model(config)
    if "solve" in chosen:
        try:
            check_recipe(config.settings[Recipe], config.model)
        except StageError as error:
            raise ConfigError(str(error)) from None
    if not place.exists():
        check_device(config)
    place.create()
    with run_lock(place), kept_request(place):
        write_request(place, config)
        place.add_prompt_images(config.images)
        run_locked(config, place, chosen, as_json=as_json)


def run_locked(
    config: RunConfig, place: RunDir, chosen: Sequence[str], *, as_json: bool, more: Mapping[str, object] | None = None
) -> None:
    """Run what is missing of the stages `chosen`, and print what the finished run says; as JSON with `more` in it.

    The caller holds the lock.
    """

    def work(executors: runner.Executors, screen: runner.Screen) -> tuple[bool, bool]:
        written = False

        def conclude(steps: list[Step], context: Context) -> None:
            nonlocal written
            from adatsq_pipe.pipeline import report  # imports pyarrow, which nothing needs before

            if steps[-1].complete and (wrong := finished.damage(place, context.fingerprints)):
                screen.say(f"what the run published is damaged ({wrong}): it is written again")
            with executors.closing():
                written = report.write(config, place, steps, context, screen.say, plots=executors.ahead)

        _, _, ran = runner.execute(config, place, list(chosen), executors, screen, conclude=conclude)
        return ran, written

    ran, complete = with_executors(config, place, work, f"adatsq-pipe run --run-dir {place.display()}")
    if as_json:
        files = {"model": "model", "report": f"report/{PAGE}", "pictures": "report/pictures"} if complete else {}
        print_json(
            {
                **(more or {}), "run": place.display(), "ran": ran, "complete": complete,
                **{name: place.display(path) for name, path in files.items()},
                "summary": asdict(read_summary(place.report)) if complete else None,
            }
        )  # fmt: skip
        return
    if not ran:
        click.echo("nothing to do: all requested stages are done")
    if complete:
        _print_summary(config, place)
    else:
        click.echo(f"next: adatsq-pipe run --run-dir {place.display()}   (the remaining stages)")


def _print_summary(config: RunConfig, place: RunDir) -> None:
    summary = read_summary(place.report)
    quality, bits, size = summary.quality, summary.bits, summary.size
    click.echo(
        f"{bits.weights_with_scales:.2f}-bit weights, {bits.activations_mean:.2f}-bit activations "
        f"({bits.activations_mac_weighted:.2f} weighted by MACs), "
        f"quantized layers {resized(size.layer_ratio)}; PSNR to full precision "
        f"{quality.psnr.mean:.1f} dB on {quality.captions} captions x {quality.seeds} seeds"
    )
    if bits.ran_otherwise:
        click.echo(
            f"the pictures were drawn at {bits.activations_run:.2f} mean activation bits, where the policy has "
            f"{bits.activations_mean:.2f}: the held-out runs have other steps than the calibration's"
        )
    if summary.text_encoders:
        click.echo(summary.text_encoders.line())
    for name, metric in quality.metrics.items():
        click.echo(metric_line(name, metric))
    if quality.by_kind:
        click.echo(f"held-out captions: {summary.facts.captions}")
        click.echo(line(quality.by_kind))
    counts = ", ".join(f"{width} bits in {count}" for width, count in bits.weight_layers.items())
    click.echo(
        f"sensitivity of the {summary.facts.sensitivity}; layers' weights: {counts} (mean {bits.weights_mean:.2f})"
    )
    if scores := quality.asked_for:
        click.echo(score_line(scores))
    if space := summary.facts.space():
        click.echo(space)
    click.echo(f"model     {place.display('model')}")
    click.echo(f"summary   {place.display('report/summary.json')}")
    click.echo(f"pictures  {place.display('report/side_by_side.png')}")
    click.echo(f"report    {place.display('report/report.html')}")
    click.echo("load      import adatsq_pipe.stages.runtime, diffusers")
    click.echo(f"          pipe = diffusers.DiffusionPipeline.from_pretrained({place.display('model')!r})")
    if picked := config.settings[AssembleSettings].mean_bits:
        click.echo(f"picked    assemble.mean_bits={picked:g} of the search's front, in place of its own choice")
        click.echo(f"next      adatsq-pipe pick {place.display()} --mean-bits 0   (back to what the search chose)")
    elif config.settings[Recipe].allocation == "lagrangian":
        click.echo(f"next      adatsq-pipe pick {place.display()} --mean-bits 3.6   (another budget, no new search)")
    else:
        click.echo(
            f"next      adatsq-pipe run --run-dir {place.display()} --set search.budget=3.6   "
            "(another budget, same weights)"
        )
