"""Methods side by side: every row is a run of the same stages in one directory, so what rows share is done once.

Rows are resumed as runs are: a row's stages that are finished are not done again.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adatsq_pipe.cluster.errors import TaskFailed
from adatsq_pipe.pipeline import report, runner
from adatsq_pipe.pipeline.config import ConfigError, RunConfig, preset_tables
from adatsq_pipe.pipeline.plots import pyplot
from adatsq_pipe.pipeline.samples import samples
from adatsq_pipe.pipeline.summary import Summary
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.stage import STAGES
from adatsq_pipe.stages.methods._layer import check_recipe
from adatsq_pipe.stages.methods._recipe import Recipe, methods, resolve, variants
from adatsq_pipe.storage import tables
from adatsq_pipe.storage.files import write_text
from adatsq_pipe.storage.rundir import RunDir

_BITS = re.compile(r"w([234568])a(\d+(?:\.\d+)?)")
CALIBRATION = tuple(STAGES)[: list(STAGES).index("assemble")]
_SEARCH = {
    3: preset_tables("w3a3")["search"],
    4: preset_tables("w4a4")["search"],
    6: {"bits": [4, 6, 8]},
    8: {"bits": [8]},
}
"""Bits of searched policies, by the least mean they are for."""


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
    found = []
    for label in bits.split(","):
        match = _BITS.fullmatch(label.strip())
        if match is None:
            raise ConfigError(f"--bits {label}: write w<weight bits>a<activation bits>, e.g. w4a4,w3a3")
        for method in chosen:
            changes = variants(method)
            found += [
                _row(method, int(match[1]), float(match[2]), c, load) for c in (changes if sweep else changes[:1])
            ]
    return [row for row in found if row is not None]


def _row(
    method: str,
    weight: int,
    activation: float,
    change: Mapping[str, object],
    load: Callable[[Sequence[str]], RunConfig],
) -> Row | None:
    """A row; None for one that cannot be: only searched allocations have a mean that is no whole number."""
    recipe = {
        "method": method, "weight_bits": weight, "conditioning_bits": max(4, weight),
        "activation_bits": int(activation), "group_fit": True, **change,
    }  # fmt: skip
    searched = resolve(recipe).allocation != "uniform"
    if activation != int(activation) and not searched:
        return None
    level = max(least for least in _SEARCH if least <= max(activation, 3))
    widths = _SEARCH[level]["bits"]
    budget = (
        max(activation, _SEARCH[3]["budget"]) if level == 3 and resolve(recipe).allocation == "trellis" else activation
    )
    sets = [f"recipe.{key}={json.dumps(value)}" for key, value in recipe.items()]
    sets += [f"search.bits={widths}", f"search.budget={float(budget)}"]
    config = load(sets)
    refused = ""
    try:
        check_recipe(config.settings[Recipe], config.model)
    except StageError as error:
        refused = str(error).removesuffix(" (nothing was started)")
    return Row(
        method=method, weight_bits=weight, activation_bits=activation, change=dict(change), config=config,
        refused=refused,
    )  # fmt: skip


def measured(row: Row, summary: Summary, pictures: Sequence[tables.Row]) -> tables.Row:
    """A finished row as plain values. Intervals are 95 %, over captions and paired seeds."""
    quality, bits, asked = summary.quality, summary.bits, summary.quality.asked_for
    found: tables.Row = {
        "method": row.method, "change": json.dumps(dict(row.change)), "bits": row.bits,
        "weight_bits": bits.weights_with_scales, "activation_bits": bits.activations_mean,
        "weight_bits_over": bits.weights_with_scales - row.weight_bits,
        "activation_bits_over": bits.activations_mean - row.activation_bits,
        "layers_smaller": summary.size.layer_ratio,
    }  # fmt: skip
    for name, value in (("psnr", quality.psnr), ("ssim", quality.ssim), ("latent_error", quality.latent_error)):
        found[name] = value.mean
        found[f"{name}_interval"] = 1.96 * value.standard_error
    for name, part in (("score", "quantized"), ("full_precision_score", "full_precision")):
        found[name] = asked[part]["total"]["mean"] if asked else None
        found[f"{name}_interval"] = 1.96 * asked[part]["total"]["standard_error"] if asked else None
    found["score_difference"] = asked["difference"]["mean"] if asked else None
    found["score_difference_interval"] = 1.96 * asked["difference"]["standard_error"] if asked else None
    spent = [summary.seconds[stage] for stage in CALIBRATION]
    found["calibration_seconds"] = sum(part[kind] for part in spent for kind in ("model", "algebra", "overhead"))
    found["captions"], found["seeds"], found["fingerprint"] = (
        quality.captions,
        quality.seeds,
        summary.fingerprint,
    )
    captions, psnr = quality.captions, [picture["psnr"] for picture in pictures]
    found["psnr_by_caption"] = [statistics.fmean(psnr[caption::captions]) for caption in range(captions)]
    return found


FLOOR = "rtn"


def against_floor(found: Sequence[tables.Row]) -> list[tables.Row]:
    """The rows with `psnr_over_rtn` and its 95 % interval: paired by caption (a mean over its seeds, which all rows
    share) with rounding to nearest as published at the same bits. None where there is no such row, and for it."""
    floors = {r["bits"]: r for r in found if r["method"] == FLOOR and r["change"] == "{}"}
    rows = []
    for row in found:
        gain, interval, floor = None, None, floors.get(row["bits"])
        if floor is not None and floor is not row and len(floor["psnr_by_caption"]) == len(row["psnr_by_caption"]):
            gains = [a - b for a, b in zip(row["psnr_by_caption"], floor["psnr_by_caption"], strict=True)]
            gain = statistics.fmean(gains)
            interval = 1.96 * statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        rows.append({**row, "psnr_over_rtn": gain, "psnr_over_rtn_interval": interval})
    return rows


SAME_BITS = 0.25
"""Rows of a method whose weights differ by no more are one choice of its knob; others are different sizes."""


def best(found: Sequence[tables.Row]) -> list[tables.Row]:
    """Of every method at every pair of bits, the change of highest PSNR to full precision; in the order given.

    Changes that make the model larger or smaller than the method as published stay, and so do AdaTSQ's ablations.
    """
    kept: dict[tuple[str, str, str], tables.Row] = {}
    published = {(row["bits"], row["method"]): row["weight_bits"] for row in found if row["change"] == "{}"}
    for row in found:
        size = published.get((row["bits"], row["method"]), row["weight_bits"])
        apart = row["method"] == "adatsq" or abs(row["weight_bits"] - size) > SAME_BITS
        key = (row["bits"], row["method"], row["change"] if apart else "")
        if key not in kept or row["psnr"] > kept[key]["psnr"]:
            kept[key] = row
    return list(kept.values())


COLUMNS = (
    "method",
    "weights",
    "activations",
    "smaller",
    "PSNR, dB",
    "over rtn",
    "latent error",
    "as asked",
    "difference",
    "calibration",
)


def cells(row: tables.Row) -> list[str]:
    """A row of the table, as text. Bits above what the row's label says are shown with a sign."""
    change = ", ".join(f"{key}={value}" for key, value in json.loads(row["change"]).items())
    score, difference, gain = "", "", ""
    if row.get("psnr_over_rtn") is not None:
        gain = f"{row['psnr_over_rtn']:+.1f} ± {row['psnr_over_rtn_interval']:.1f}"
    if row["score"] is not None:
        score = f"{row['score']:.2f} ± {row['score_interval']:.2f}"
        difference = f"{row['score_difference']:+.2f} ± {row['score_difference_interval']:.2f}"
    return [
        f"{row['method']} ({change})" if change else row["method"],
        f"{row['weight_bits']:.2f} ({row['weight_bits_over']:+.2f})",
        f"{row['activation_bits']:.2f} ({row['activation_bits_over']:+.2f})",
        f"{row['layers_smaller']:.2f}x",
        f"{row['psnr']:.1f} ± {row['psnr_interval']:.1f}",
        gain,
        f"{row['latent_error']:.4f} ± {row['latent_error_interval']:.4f}",
        score, difference, f"{row['calibration_seconds']:.0f} s",
    ]  # fmt: skip


def markdown(found: Sequence[tables.Row], refused: Sequence[Row], model: str) -> str:
    """The tables of `compare.md`, one for each pair of bits, the nearest to full precision first."""
    lines = [f"# Methods on {model}", ""]
    if found:
        first = found[0]
        score = (
            f"; full precision shows what was asked for in {first['full_precision_score']:.2f}"
            if first["score"]
            else ""
        )
        lines += [f"{first['captions']} held-out captions x {first['seeds']} paired seeds, 95 % intervals{score}.", ""]
    for bits in dict.fromkeys(row["bits"] for row in found):
        lines += [f"## {bits}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        ranked = sorted((row for row in found if row["bits"] == bits), key=lambda row: -row["psnr"])
        lines += [f"| {' | '.join(cells(row))} |" for row in ranked]
        lines.append("")
    lines += [f"- {row.name} at {row.bits} was left out: {row.refused}" for row in refused]
    return "\n".join(lines).rstrip() + "\n"


def plot(found: Sequence[tables.Row], path: Path) -> None:
    """PSNR and score against effective bits (mean of weights' and activations'), with the Pareto line of the best."""
    plt = pyplot()
    panels = [("psnr", "PSNR to full precision, dB")]
    if any(row["score"] is not None for row in found):
        panels.append(("score", "share that shows what was asked for"))
    figure, axes = plt.subplots(1, len(panels), figsize=(6.2 * len(panels), 4.4), squeeze=False)
    names = list(dict.fromkeys(row["method"] for row in found))
    for axis, (field, label) in zip(axes[0], panels, strict=True):
        for i, name in enumerate(names):
            own = [row for row in found if row["method"] == name]
            widths = [row[f"{field}_interval"] for row in own]
            axis.errorbar(
                [_effective(row) for row in own], [row[field] for row in own], widths,
                fmt="o^sDvP*X<>"[i % 10], color=f"C{i % 10}", capsize=2, elinewidth=0.7, label=name,
            )  # fmt: skip
        line = list(_front(found, field))
        axis.plot([_effective(row) for row in line], [row[field] for row in line], color="0.6", lw=1, zorder=0)
        axis.set_xlabel("mean of effective weight and activation bits")
        axis.set_ylabel(label)
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _effective(row: tables.Row) -> float:
    return float(row["weight_bits"] + row["activation_bits"]) / 2


def _front(found: Sequence[tables.Row], field: str) -> Iterator[tables.Row]:
    """Rows that no other beats with as few bits, by rising bits."""
    most = float("-inf")
    for row in sorted(found, key=lambda row: (_effective(row), -row[field])):
        if row[field] > most:
            most = row[field]
            yield row


def write(found: Sequence[tables.Row], refused: Sequence[Row], run: RunDir, model: str) -> None:
    """compare.parquet (all rows), compare.md (the best of each method) and compare.png, in the run directory."""
    if not found:
        return
    found = against_floor(found)
    tables.write(run.path / "compare.parquet", [dict(row) for row in found])
    write_text(run.path / "compare.md", markdown(best(found), refused, model))
    plot(best(found), run.path / "compare.png")
    run.upload("compare.parquet", "compare.md", "compare.png")


def execute(planned: Sequence[Row], run: RunDir, executors: runner.Executors, screen: runner.Screen) -> Outcome:
    """Run every row that is not refused. The tables are written after each row: an interruption leaves them valid.

    A row that fails is reported and left out; the others still run.
    """
    found, left_out, failed = list[tables.Row](), [row for row in planned if row.refused], 0
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
            found.append(measured(row, report.summarize(row.config, run, context), samples(context)))
            said = zip(COLUMNS[1:], cells(against_floor(found)[-1])[1:], strict=True)
            screen.say(f"{row.name} at {row.bits}: {', '.join(map(' '.join, said))}")
        write(found, left_out, run, row.config.model.name)
    return Outcome(rows=found, failed=failed)
