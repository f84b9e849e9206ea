"""`compare`: methods side by side in one run directory."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adatsq_pipe.pipeline import config as configuration
from adatsq_pipe.pipeline.commands.layout import print_json
from adatsq_pipe.pipeline.commands.shell import (
    cluster_options,
    cluster_overrides,
    example,
    fail,
    json_option,
    options,
    run_lock,
    user_errors,
    with_executors,
)
from adatsq_pipe.pipeline.compute import kept_by
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.devices import check_device, placed, workers_gpus
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.request import check_model, load_to_run
from adatsq_pipe.storage.files import read_text
from adatsq_pipe.storage.model_files import model_name
from adatsq_pipe.storage.rundir import RunDir

if TYPE_CHECKING:
    from adatsq_pipe.storage.tables import Row


@click.command(
    short_help="Compare methods on the same captures.",
    epilog=example("compare --run-dir adatsq-compare --methods rtn,adatsq --bits w4a4"),
)
@options
@click.option("--methods", "wanted", default="all", show_default=True, help="Methods to compare: all, or a list a,b.")
@click.option("--bits", default="w4a4,w3a3", show_default=True, help="Pairs of weight and activation bits.")
@click.option("--sweep", is_flag=True, help="Also try other values of each method's main setting, and show its best.")
@cluster_options
@json_option
@user_errors
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
    as_json: bool,
) -> None:
    """Run several methods on the same captures and score them in the same way.

    Writes compare.html, compare.md, compare.parquet and compare.png. Run the same command again to resume.
    """
    from adatsq_pipe.pipeline import compare as comparing  # imports numpy and pyarrow

    place = RunDir.open(run_dir)
    extra = cluster_overrides(executor, address)
    first = load_to_run(place, model, preset, file, (*sets, *extra))
    if model is None:
        _check_comparison(place, first)
    check_model(first)

    kept = kept_by(place)

    def load(recipe: Sequence[str]) -> RunConfig:
        given = (*recipe, *sets, *extra)
        return placed(
            configuration.load(
                preset=preset,
                file=file,
                sets=given,
                model=model,
                previous=None,
                kept=kept,
                count_gpus=workers_gpus,
                fetch=True,
            )
        )

    planned = comparing.rows(wanted, bits, sweep=sweep, load=load)
    if all(row.refused for row in planned):
        raise ConfigError(f"{planned[0].name} at {planned[0].bits} is refused: {planned[0].refused}")
    if not place.exists():
        check_device(first)
    place.create()
    with run_lock(place):
        place.add_prompt_images(first.images)
        again = shlex.join(["adatsq-pipe", *sys.argv[1:]])
        outcome = with_executors(
            planned[0].config, place, lambda e, s: comparing.execute(planned, place, e, s, again), again
        )
    if not outcome.rows:
        fail("no row finished; the reasons are above", 1)
    if as_json:
        _print_rows(place, outcome.rows)
        if outcome.failed:
            fail(f"{outcome.failed} rows failed; the reasons are above", 1)
        return
    text = read_text(place.path / "compare.md")
    if sys.stdout.isatty():
        from rich.console import Console  # only a terminal gets the table drawn
        from rich.markdown import Markdown  # as above

        Console().print(Markdown(text))
    else:
        click.echo(text)
    click.echo(f"rows      {place.display('compare.parquet')}\nplot      {place.display('compare.png')}")
    if (place.path / "compare.html").exists():
        click.echo(f"page      {place.display('compare.html')}")
    if outcome.failed:
        fail(f"{outcome.failed} rows failed; the reasons are below the table", 1)


def _check_comparison(place: RunDir, config: RunConfig) -> None:
    """Raise ConfigError if the run directory holds a comparison of another model than the one that would be taken where
    none is named: its page and tables would be written over."""
    from adatsq_pipe.pipeline.comparison import compared, read_comparison  # as in _print_rows

    if not place.exists() or not compared(place):
        return
    before = read_comparison(place).model
    if before != model_name(config.model):
        raise ConfigError(
            f"{place.display()} holds a comparison of {before}, and without --model this one is of "
            f"{model_name(config.model)}; name the --model, or another --run-dir"
        )


def _print_rows(place: RunDir, rows: Sequence[Row]) -> None:
    """The rows of compare.parquet with their gains, what was left out and why, and the files, as JSON."""
    # Both import numpy, as the comparison itself did.
    from adatsq_pipe.pipeline.comparison import read_comparison
    from adatsq_pipe.pipeline.paired import with_gains

    names = ("compare.parquet", "compare.md", "compare.png", "compare.html")
    comparison = read_comparison(place)
    print_json(
        {
            "rows": [{**row, "change": json.loads(row["change"])} for row in with_gains(rows)],
            "left_out": [asdict(row) for row in comparison.left_out],
            "floor": comparison.floor,
            "files": [place.display(name) for name in names if (place.path / name).exists()],
        }
    )
