"""`pick`: the model of another point of the front, assembled and evaluated without another search."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict

import click

from adatsq_pipe.pipeline.commands.run import run_locked
from adatsq_pipe.pipeline.commands.shell import (
    DEFAULT_RUN,
    cluster_options,
    cluster_overrides,
    example,
    json_option,
    run_lock,
    user_errors,
)
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.plan import plan
from adatsq_pipe.pipeline.request import check_model, load_config, load_to_run, write_request
from adatsq_pipe.stages.allocation.points import Front, Point, decibels, front_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.storage.rundir import RunDir

STAGES = ("assemble", "reference", "evaluate")
AROUND = 3
"""Rows of the front that are shown on either side of the picked one."""
_DECIBELS = re.compile(r"\s*([+-]?\d+(?:\.\d*)?)\s*(?:dB)?\s*", re.IGNORECASE)


@click.command(
    short_help="Make the model of another budget, without another search.",
    epilog=example("pick adatsq-run --mean-bits 3.6"),
)
@click.argument("run_dir", metavar="RUN", default=DEFAULT_RUN)
@click.option("--mean-bits", type=float, help="Most mean activation bits; 0 = back to what the search chose.")
@click.option("--max-error", type=float, help="Largest relative squared error of the final latents, e.g. 0.002.")
@click.option("--bits-for", metavar="DECIBELS", help="Least -10 log10 of that error, e.g. 40dB.")
@cluster_options
@json_option
@user_errors
def pick(
    run_dir: str,
    mean_bits: float | None,
    max_error: float | None,
    bits_for: str | None,
    executor: str | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Assemble and evaluate another point of the front of RUN: the fewest bits that meet the target.

    RUN is a run directory whose search is done [default: adatsq-run]. It keeps the choice. An error is the predicted
    one, or the measured one where the search rolled a policy out.
    """
    limit = _limit(mean_bits, max_error, bits_for)
    place = RunDir.open(run_dir)
    place.check()
    overrides = cluster_overrides(executor, address)
    front = _front(place, overrides)
    try:
        if limit is not None:
            point = front.within_error(limit)
        else:
            point = front.at_mean_bits(mean_bits) if mean_bits else front.chosen
    except ValueError as error:
        raise ConfigError(str(error)) from None
    config = load_to_run(place, None, None, None, (*overrides, f"assemble.mean_bits={front.bound_of(point)!r}"))
    check_model(config)
    if not as_json:
        click.echo(_text(front, point))
    with run_lock(place):
        write_request(place, config)
        place.add_prompt_images(config.images)
        more = {"picked": _plain(point), "front": [_plain(row) for row in front.points]}
        run_locked(config, place, STAGES, as_json=as_json, more=more)


def _limit(mean_bits: float | None, max_error: float | None, bits_for: str | None) -> float | None:
    """The largest error that is allowed; None if a number of bits is the target. Raises ConfigError."""
    if sum(target is not None for target in (mean_bits, max_error, bits_for)) != 1:
        raise ConfigError("pick needs exactly one of --mean-bits, --max-error and --bits-for, e.g. --mean-bits 3.6")
    if mean_bits is not None:
        if not (mean_bits >= 0 and math.isfinite(mean_bits)):
            raise ConfigError(f"--mean-bits must be 0 or more (got {mean_bits:g})")
        return None
    if max_error is not None:
        if not (max_error > 0 and math.isfinite(max_error)):
            raise ConfigError(f"--max-error must be above 0, e.g. 0.002 (got {max_error:g})")
        return max_error
    match = _DECIBELS.fullmatch(bits_for or "")
    if match is None:
        raise ConfigError(f"--bits-for must be a number of decibels, e.g. 40dB (got {bits_for!r})")
    return float(10 ** (-float(match[1]) / 10))


def _front(place: RunDir, overrides: Sequence[str]) -> Front:
    """The front of the run's finished search. Raises ConfigError where there is none of many budgets."""
    config = load_config(place, None, None, None, (*overrides, "assemble.mean_bits=0.0"))
    allocation = config.settings[Recipe].allocation
    if allocation != "lagrangian":
        raise ConfigError(
            f"recipe.allocation = '{allocation}' has no front of many budgets; make one with: "
            f"adatsq-pipe run --run-dir {place.display()} --set recipe.method=endpoint"
        )
    steps, context = plan(config, place)
    if not next(step for step in steps if step.stage.name == "search").complete:
        raise ConfigError(
            "the search is not done; finish it with: "
            f"adatsq-pipe run --run-dir {place.display()} --stages capture..search"
        )
    return front_of(context)


def _text(front: Front, point: Point) -> str:
    """What is picked, and what else the front offers: its ends and the neighbours of `point`."""
    place = front.points.index(point)
    near = {0, *range(place - AROUND, place + AROUND + 1), len(front.points) - 1}
    shown = [i for i in sorted(near) if 0 <= i < len(front.points)]
    own = ", as the search chose" if point == front.chosen else ""
    lines = [f"picked    {point.mean_bits:.2f} mean bits ({point.mac_weighted_bits:.2f} weighted by MACs){own}"]
    if point.predicted_error is not None and front.weights_error is not None:
        lines.append(
            f"predicted error {point.predicted_error:.3g} ({decibels(point.predicted_error):.1f} dB), of which weights "
            f"{front.weights_error:.3g}"
        )
    lines.append(f"the front has {len(front.points)} points:")
    lines.append(f"  {'mean bits':>9}  {'by MACs':>7}  {'predicted error':>17}  {'measured error':>17}")
    for before, i in zip([shown[0], *shown], shown, strict=False):
        if i > before + 1:
            lines.append("        ...")
        row = front.points[i]
        lines.append(
            f"{'>' if i == place else ' '} {row.mean_bits:9.2f}  {row.mac_weighted_bits:7.2f}  "
            f"{_error(row.predicted_error):>17}  {_error(row.rollout_error):>17}".rstrip()
        )
    return "\n".join(lines)


def _plain(point: Point) -> dict[str, object]:
    """A point as JSON values, without its bits by layer, which front.parquet has."""
    return {name: value for name, value in asdict(point).items() if name != "bits"}


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.3g} ({decibels(error):.1f} dB)"
