"""Methods side by side: every row is a run of the same stages in one directory, so what rows share is done once.

Rows are resumed as runs are: a row's stages that are finished are not done again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from adatsq_pipe.cluster.errors import TaskFailed
from adatsq_pipe.pipeline import report, runner
from adatsq_pipe.pipeline.compare_table import cells, columns, write
from adatsq_pipe.pipeline.comparison import Comparison, LeftOut
from adatsq_pipe.pipeline.config import RunConfig, preset_tables
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.kind_quality import score_figure
from adatsq_pipe.pipeline.paired import paired_columns, with_gains
from adatsq_pipe.pipeline.samples import samples
from adatsq_pipe.pipeline.summary import Summary
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.base.stage import STAGES
from adatsq_pipe.stages.evaluation import floor
from adatsq_pipe.stages.methods._layer import check_recipe
from adatsq_pipe.stages.methods._recipe import Recipe, methods, resolve, variants
from adatsq_pipe.storage import tables
from adatsq_pipe.storage.model_files import model_name
from adatsq_pipe.storage.rundir import RunDir

_BITS = re.compile(r"w([234568])a(\d+(?:\.\d+)?)")
CALIBRATION = tuple(STAGES)[: list(STAGES).index("assemble")]
_WIDTHS = {2: [2, 3, 4, 8], 3: [3, 4, 8], 4: [3, 4, 8], 6: [4, 6, 8], 8: [8]}
"""Activation widths of AdaTSQ's and ViDiT-Q's policies, by the least mean they are for."""
_ABOVE_THREE = preset_tables("w3a3")["search"]["budget"]
"""The mean bits of a search that is labelled w3a3: at 3 bits there would be nothing to choose."""
_SEARCHED = ("trellis", "lagrangian", "bisection")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method at one pair of bits. `change` is what differs from the method as published."""

    method: str
    weight_bits: int
    activation_bits: float
    change: Mapping[str, object]
    config: RunConfig
    refused: str

    @property
    def bits(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits:g}"

    @property
    def name(self) -> str:
        changed = ", ".join(f"{key}={value}" for key, value in self.change.items())
        return f"{self.method} ({changed})" if changed else self.method


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The finished rows, and how many failed."""

    rows: list[tables.Row]
    failed: int


def rows(wanted: str, bits: str, *, sweep: bool, load: Callable[[Sequence[str]], RunConfig]) -> list[Row]:
    """The rows that `--methods` and `--bits` name; `load(sets)` gives a row's configuration. Raises ConfigError."""
    known = methods()
    chosen = known if wanted == "all" else [part.strip() for part in wanted.split(",")]
    for name in chosen:
        if name not in known:
            raise ConfigError(f"unknown method {name!r}; choose from {', '.join(known)}")
    planned = list[Row]()
    for label in bits.split(","):
        match = _BITS.fullmatch(label.strip())
        if match is None or not 2 <= float(match[2]) <= 16:
            raise ConfigError(
                f"--bits {label.strip()}: write w<weight bits>a<mean activation bits>, e.g. w4a4,w3a3.1; weights have "
                "2, 3, 4, 5, 6 or 8 bits, activations 2 to 16"
            )
        for method in chosen:
            changes = variants(method)
            planned += [
                _row(method, int(match[1]), float(match[2]), c, load) for c in (changes if sweep else changes[:1])
            ]
    return planned


def _row(
    method: str,
    weight: int,
    activation: float,
    change: Mapping[str, object],
    load: Callable[[Sequence[str]], RunConfig],
) -> Row:
    """A row, refused where it cannot be: only searched allocations have a mean that is no whole number."""
    recipe = {
        "method": method, "weight_bits": weight, "conditioning_bits": max(4, weight),
        "activation_bits": int(activation), "group_fit": True,
        **{key: value for key, value in change.items() if "." not in key},
    }  # fmt: skip
    allocation = resolve(recipe).allocation
    level = max(least for least in _WIDTHS if least <= activation)
    widths = [] if allocation == "lagrangian" else _WIDTHS[level]
    budget = _ABOVE_THREE if activation == 3 and allocation in _SEARCHED else activation
    sets = [f"recipe.{key}={json.dumps(value)}" for key, value in recipe.items()]
    sets += [f"search.bits={widths}", f"search.budget={float(budget)}"]
    sets += [f"{key}={json.dumps(value)}" for key, value in change.items() if "." in key]
    config = load(sets)
    refused = ""
    if activation != int(activation) and config.settings[Recipe].allocation in ("uniform", "first_last"):
        refused = (
            f"its activations have one width, and {activation:g} is a mean of several; compare whole numbers, or set "
            "recipe.allocation to 'trellis' or 'decoupled'"
        )
    try:
        check_recipe(config.settings[Recipe], config.model)
    except StageError as error:
        refused = str(error).removesuffix(" (nothing was started)")
    return Row(
        method=method, weight_bits=weight, activation_bits=activation, change=dict(change), config=config,
        refused=refused,
    )  # fmt: skip


def measured(row: Row, summary: Summary, pictures: Sequence[tables.Row]) -> tables.Row:
    """A finished row as plain values. Intervals are 95 %, over captions and paired seeds; None of a single caption."""
    quality, bits, scores = summary.quality, summary.bits, summary.quality.asked_for

    def half(standard_error: float) -> float | None:
        return 1.96 * standard_error if quality.captions > 1 else None

    values: tables.Row = {
        "method": row.method, "change": json.dumps(dict(row.change)), "bits": row.bits,
        "weight_bits": bits.weights_with_scales, "activation_bits": bits.activations_mean,
        "weight_bits_over": bits.weights_with_scales - row.weight_bits,
        "activation_bits_over": bits.activations_mean - row.activation_bits,
        "layers_smaller": summary.size.layer_ratio,
    }  # fmt: skip
    for name, value in (("psnr", quality.psnr), ("ssim", quality.ssim), ("latent_error", quality.latent_error)):
        values[name] = value.mean
        values[f"{name}_interval"] = half(value.standard_error)
    for name, metric in quality.metrics.items():
        values[name], values[f"{name}_interval"] = metric.quantized.mean, metric.quantized.interval
        values[f"{name}_full_precision"] = metric.full_precision.mean if metric.full_precision else None
    parts = {"score": "quantized", "full_precision_score": "full_precision", "score_difference": "difference"}
    for name, part in parts.items():
        found = score_figure(scores, part) if scores else None
        values[name], values[f"{name}_interval"] = (found.mean, found.interval) if found else (None, None)
    spent = [summary.seconds[stage] for stage in CALIBRATION]
    values["calibration_seconds"] = sum(part[kind] for part in spent for kind in ("model", "algebra", "overhead"))
    values["captions"], values["seeds"], values["fingerprint"] = (
        quality.captions,
        quality.seeds,
        summary.fingerprint,
    )
    return values | paired_columns(pictures, quality.captions)


def execute(
    planned: Sequence[Row], run: RunDir, executors: runner.Executors, screen: runner.Screen, command: str = ""
) -> Outcome:
    """Run every row that is not refused. The tables are written after each row: an interruption leaves them valid.

    A row that fails is reported and left out; the others still run. The page, which says that `command` was given, is
    written at the end.
    """
    results, left_out, failed = list[tables.Row](), [row for row in planned if row.refused], 0
    refused, references = len(left_out), dict[str, str]()
    itself: str | None = None
    for row in left_out:
        screen.say(f"{row.name} at {row.bits} is refused: {row.refused}")
    doable = [row for row in planned if not row.refused]
    for place, row in enumerate(doable, 1):
        screen.say(f"row {place} of {len(doable)}: {row.name} at {row.bits}")
        try:
            _, context, _ = runner.execute(row.config, run, list(STAGES), executors, screen, publish=False)
        except (StageError, TaskFailed) as error:
            failed += 1
            left_out.append(replace(row, refused=str(error)))
            screen.say(f"{row.name} at {row.bits} failed: {error}")
        else:
            results.append(measured(row, report.summarize(row.config, run, context), samples(context)))
            references[context.fingerprints["evaluate"]] = context.fingerprints["reference"]
            last = with_gains(results)[-1]
            figures = zip(columns(last)[1:], cells(last)[1:], strict=True)
            screen.say(f"{row.name} at {row.bits}: {', '.join(map(' '.join, figures))}")
            if itself is None:
                itself = _floor_line(row.config, run, executors, screen)
        for part, why in write(results, left_out, run, model_name(row.config.model), itself or "").items():
            screen.say(f"{part} could not be drawn: {why}")
        if results:
            Comparison(
                model=model_name(row.config.model), floor=itself or "", command=command, references=references,
                left_out=[
                    LeftOut(name=r.name, bits=r.bits, refused=r.refused, failed=place >= refused)
                    for place, r in enumerate(left_out)
                ],
            ).write(run)  # fmt: skip
    if results:
        write_page(run, screen.say)
    return Outcome(rows=results, failed=failed)


def write_page(run: RunDir, say: Callable[[str], object]) -> None:
    """Write the page of the comparison in `run`; what it lacks is said in lines. Raises StorageError."""
    from adatsq_pipe.pipeline.page import comparison_page  # imports plotly, which rows need not

    for part, why in comparison_page.write_page(run).items():
        say(f"{part}: {why}")


def _floor_line(config: RunConfig, run: RunDir, executors: runner.Executors, screen: runner.Screen) -> str:
    """How far full precision is from itself, in one line; measured unless it has been. The rows stand without it."""
    stages = [floor.STAGE.name]
    try:
        _, context, _ = runner.execute(config, run, stages, executors, screen, publish=False, extra=(floor.STAGE,))
    except (StageError, TaskFailed) as error:
        screen.say(f"the floor could not be measured: {error}")
        return ""
    return floor.floor_of(context).line(config.settings[ComputeSettings].dtype)
