"""What a finished run says: report/summary.json and the pictures, full precision above quantized."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from adatsq_pipe.pipeline import finished, pictures
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.notes import Notes
from adatsq_pipe.pipeline.plan import Step
from adatsq_pipe.pipeline.plots import front, policy, weight_bits
from adatsq_pipe.pipeline.plots import steps as by_step
from adatsq_pipe.pipeline.samples import bits_run, quantized_units, read_rows, samples
from adatsq_pipe.pipeline.summary import FILE, Bits, Facts, Mean, PerStep, Quality, SearchCost, Size, Summary
from adatsq_pipe.stages.allocation.points import AssembleSettings, point_of
from adatsq_pipe.stages.allocation.sensitivity import sensitivity_of
from adatsq_pipe.stages.allocation.trellis import SearchSettings
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.base.survey import Survey
from adatsq_pipe.stages.calibration.survey import left_of
from adatsq_pipe.stages.calibration.unit_keys import trajectory_unit
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.export.model_card import card
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.scenes.world import metrics
from adatsq_pipe.stages.weights.solve import SolveSettings
from adatsq_pipe.stages.weights.widths import weight_widths
from adatsq_pipe.storage import arrays
from adatsq_pipe.storage.files import clone_tree, write_text
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.model_files import model_name
from adatsq_pipe.storage.published import PublishedModel
from adatsq_pipe.storage.rundir import RunDir
from adatsq_pipe.storage.tables import Row

FRONT, WEIGHT_BITS = "front.png", "weight_bits.png"
"""Names of the plots that only some recipes have."""
SIDE_BY_SIDE, POLICY, STEPS = "side_by_side.png", "policy.png", "steps.png"
PAGE = "report.html"
FILES = (FILE, SIDE_BY_SIDE, "side_by_side.txt", POLICY, STEPS, FRONT, WEIGHT_BITS, PAGE)
"""What a report may consist of."""


SCORES = "asked_for"
"""Key of the summary's scores."""
MOST_DECIBELS = 200.0
"""What equal latents count as, whose ratio has no end."""


def write(
    config: RunConfig,
    run: RunDir,
    steps: list[Step],
    context: Context,
    say: Callable[[str], object] = lambda line: None,
    *,
    again: bool = False,
) -> bool:
    """Write the report unless it stands already for this very run, or in any case. False if evaluate has not finished.

    A plot that fails is left out: `say` gets a line on it, and the summary has it. Raises DamagedUnit.
    """
    done = {step.stage.name: step for step in steps}
    if not done["evaluate"].complete:
        return False
    path = run.report / FILE
    if not again and finished.stands(run, context.fingerprints):
        return True
    _verify(context)
    run.report.mkdir(exist_ok=True)
    notes = Notes()
    summary = summarize(config, run, context, notes)
    _plot(run.report, context, summary, notes)
    from adatsq_pipe.pipeline.page.content import write_page  # imports plotly, which a run with nothing to do needs not

    write_page(config, run, context, summary, notes)
    summary = replace(summary, facts=replace(summary.facts, report=dict(notes)))
    for part, why in notes.items():
        say(f"report: {part}: {why}")
    _publish(run, context, summary)
    write_text(path, json.dumps(asdict(summary), indent=1) + "\n")
    run.upload("report")
    fingerprints = context.fingerprints
    PublishedModel(run.published_folder(fingerprints["assemble"], fingerprints["evaluate"])).vouch(run.report, FILES)
    return True


def _verify(context: Context) -> None:
    """Hash the files of the units that the report reads: what is published must be what was computed."""
    for stage in ("search", "assemble", "reference", "evaluate"):
        for unit in context.manifest(stage).units():
            context.read(stage, unit)


def _plot(folder: Path, context: Context, summary: Summary, notes: Notes) -> None:
    """The plots. Those that fail, or say nothing of this recipe, are removed where an earlier report has left them."""
    for name in FILES[1:]:
        (folder / name).unlink(missing_ok=True)
    drawings: dict[str, Callable[[], object]] = {
        SIDE_BY_SIDE: lambda: pictures.draw(context, folder / SIDE_BY_SIDE, summary.title),
        POLICY: lambda: policy.draw(context, folder / POLICY),
        STEPS: lambda: by_step.draw(summary.quality.per_step, folder / STEPS),
    }
    if front.has_front(context):
        drawings[FRONT] = lambda: front.draw(context, folder / FRONT)
    if context.settings[Recipe].weight_budget:
        drawings[WEIGHT_BITS] = lambda: weight_bits.draw(weight_widths(context), folder / WEIGHT_BITS)
    for name, drawing in drawings.items():
        with notes.of(name):
            if line := drawing():
                notes[name] = str(line)
            continue
        (folder / name).unlink(missing_ok=True)


def _publish(run: RunDir, context: Context, summary: Summary) -> None:
    """The assembled folder with a card that says what it scores; `model` is that from now on."""
    manifest = context.manifest("assemble")
    place = run.published_folder(context.fingerprints["assemble"], context.fingerprints["evaluate"])
    text = card(context, manifest.read("model").value, asdict(summary.quality))
    plot = run.report / POLICY
    added = {POLICY: plot.read_bytes()} if plot.exists() else {}
    if not added:
        text = "".join(line for line in text.splitlines(keepends=True) if f"({POLICY})" not in line)
    added["README.md"] = text.encode()
    clone_tree(manifest.local_folder("model"), place, added)
    run.publish(place, context.fingerprints["assemble"], context.fingerprints["evaluate"])


def summarize(config: RunConfig, run: RunDir, context: Context, notes: Notes | None = None) -> Summary:
    """The run in numbers. Scores that cannot be computed are None, and `notes` says why."""
    notes, scores = Notes() if notes is None else notes, None
    drawn = samples(context)
    with notes.of(SCORES):
        scores = _scores(config, context, drawn)
    point, found = point_of(context), context.manifest("search").read("front").value["front"]
    widths = weight_widths(context)
    sizes, name = context.manifest("assemble").read("model").value, model_name(config.model)
    return Summary(
        title=f"{name}: {sizes['weight_bits']:.2f}-bit weights, {point.mean_bits:.2f}-bit activations",
        fingerprint=context.fingerprints["evaluate"],
        model=str(config.model),
        quality=Quality(
            captions=len(config.settings[EvaluateSettings].prompts),
            seeds=config.settings[EvaluateSettings].seeds,
            latent_error=_mean(drawn, "latent_error"),
            latent_psnr=_mean(drawn, "latent_psnr"),
            psnr=_mean(drawn, "psnr"),
            ssim=_mean(drawn, "ssim"),
            asked_for=scores,
            per_step=_per_step(read_rows(context, "steps.parquet")),
        ),
        bits=Bits(
            weights_with_scales=sizes["weight_bits"],
            weights_mean=widths.mean,
            weight_layers={str(bits): count for bits, count in widths.layers.items()},
            activations_mean=point.mean_bits,
            activations_mac_weighted=point.mac_weighted_bits,
            budget=config.settings[AssembleSettings].mean_bits or config.settings[SearchSettings].budget,
            activations_run=bits_run(context),
        ),
        size=Size(
            layers=sizes["layers"],
            layer_bytes_bf16=sizes["layer_bytes_bf16"],
            layer_bytes=sizes["layer_bytes"],
            transformer_bytes_bf16=sizes["transformer_bytes_bf16"],
            transformer_bytes=sizes["transformer_bytes"],
            layer_ratio=sizes["layer_bytes_bf16"] / sizes["layer_bytes"],
            transformer_ratio=sizes["transformer_bytes_bf16"] / sizes["transformer_bytes"],
        ),
        search=SearchCost(**search_cost(context), front=found, rollout_error=point.rollout_error),
        facts=_facts(config, run, context),
        capture_over_bare_forwards=capture_cost(context),
        seconds=seconds(run, context),
    )


def _per_step(rows: list[Row]) -> PerStep:
    """Means over captions and seeds, by step."""
    by_step = [[row for row in rows if row["step"] == t] for t in range(1 + max(row["step"] for row in rows))]
    return PerStep(
        latent_relative_error=[statistics.fmean(row["error"] for row in step) for step in by_step],
        latent_psnr_db=[statistics.fmean(row["psnr"] for row in step) for step in by_step],
    )


def _facts(config: RunConfig, run: RunDir, context: Context) -> Facts:
    markers = context.manifest("solve").markers()
    layers = {u.removeprefix("layer/"): marker.value for u, marker in markers.items() if u.startswith("layer/")}
    survey = Survey.from_plain(context.manifest("capture").read("survey").value)
    damping = config.settings[SolveSettings].damping
    return Facts(
        sensitivity=sensitivity_of(context),
        layers_not_called=list(survey.unused),
        layers_called_repeatedly_and_left_alone=list(survey.repeated),
        left_alone=left_of(context),
        weight_only_layers=[layer.name for layer in survey.layers if not layer.rounded],
        memory=_logged(run, context, "memory"),
        damping_raised={name: value["damping"] for name, value in layers.items() if value["damping"] > damping},
        micro_batch=_micro_batches(context),
        placement=_logged(run, context, "placement"),
        smoothing=dict(Counter(value["smoothing"] for value in layers.values())),
        groups_fitted=_fitted(config, layers),
        worst_layer_error=max((value["error"], name) for name, value in layers.items()),
    )


def _micro_batches(context: Context) -> dict[str, dict[str, int]]:
    """Units by stage whose batches did not fit into memory, counted by what they were halved to."""
    halvings: dict[str, dict[str, int]] = {}
    for stage in context.fingerprints:
        halved = [m.micro_batch for m in context.manifest(stage).markers().values() if m.micro_batch]
        if halved:
            halvings[stage] = dict(sorted(Counter(f"{m['from']} -> {m['to']}" for m in halved).items()))
    return halvings


def _logged(run: RunDir, context: Context, fact: str) -> dict[str, object]:
    """The last entry of the log for `fact` (`memory`: how the model fits; `placement`: workers to a GPU) by stage."""
    return {
        entry["stage"]: entry[fact]
        for entry in run.log_entries()
        if fact in entry and context.fingerprints.get(entry["stage"]) == entry["fingerprint"]
    }


def _fitted(config: RunConfig, layers: Mapping[str, Any]) -> dict[str, int]:
    """Layers whose weight groups are not of the recipe's size, for that does not divide their width."""
    recipe = config.settings[Recipe]
    wanted = {recipe.weight_group, recipe.conditioning_group}
    if not recipe.group_fit or recipe.group_search:
        return {}
    return {name: v["spec"]["group"] for name, v in layers.items() if v["spec"]["group"] not in wanted}


def _scores(config: RunConfig, context: Context, samples: list[Row]) -> dict[str, object] | None:
    """GenEval's tasks and Frechet distances, where a program can read the pictures."""
    if not config.settings[ModelSettings].world:
        return None
    folders = [context.manifest("evaluate").local_folder(unit) for unit in quantized_units(context)]
    quantized, reference = (
        np.concatenate([arrays.read(folder, name) for folder in folders]) for name in ("features", "reference_features")
    )
    truth = arrays.read(context.manifest("reference").local_folder("truth"), "features")
    distances = {
        "full_precision_to_truth": metrics.frechet_distance(reference, truth),
        "quantized_to_truth": metrics.frechet_distance(quantized, truth),
        "quantized_to_full_precision": metrics.frechet_distance(quantized, reference),
    }
    return {**metrics.compare(samples), "frechet": {**distances, "pictures": len(quantized), "true_scenes": len(truth)}}


def _mean(rows: list[Row], name: str) -> Mean:
    """Mean with its standard error."""
    values = [min(row[name], MOST_DECIBELS) if row[name] == math.inf else row[name] for row in rows]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Mean(mean=statistics.fmean(values), standard_error=error, worst=_worst(name, values))


def _worst(name: str, values: list[float]) -> float:
    return max(values) if name == "latent_error" else min(values)


def search_cost(context: Context) -> dict[str, float]:
    """What the search cost, in equivalents of one full-precision trajectory of the same captions.

    `by_calls` counts denoiser calls (each weighted by its captions), `by_seconds` the model compute they took.
    """
    capture, search = context.manifest("capture"), context.manifest("search")
    units = list(search.markers().values())
    levels = [m for m in units if m.unit.startswith(("level/", "sensitivity/"))]
    rollouts = [m for m in units if m.unit.startswith("rollout/")]
    batches = context.settings[SearchSettings].batches if rollouts else 1
    reference = [capture.read(trajectory_unit(batch)) for batch in range(batches)]
    captions = sum(m.value["samples"] for m in reference)
    calls = sum(m.calls for m in levels)
    few = min(context.settings[SearchSettings].rollout_prompts, reference[0].value["samples"])
    calls += sum(m.value["calls"] * m.value.get("samples", few) for m in rollouts) / captions
    spent = sum(m.seconds["model"] for m in (*levels, *rollouts))
    return {
        "fp_trajectories_by_calls": calls / reference[0].value["calls"],
        "fp_trajectories_by_seconds": spent / sum(m.seconds["model"] for m in reference),
    }


def capture_cost(context: Context) -> float:
    """Worker seconds of the capture over its bare forwards: each trajectory's calls, made once and repeated once."""
    manifest = context.manifest("capture")
    units = list(manifest.markers().values())
    bare = 2 * sum(m.seconds["model"] for m in units if m.unit.startswith("trajectory/"))
    return sum(m.seconds["total"] for m in units) / bare


def seconds(run: RunDir, context: Context) -> dict[str, dict[str, float]]:
    """Per stage: wall time over all tries, and the workers' seconds split into model, linear algebra and overhead."""
    walls: dict[str, float] = {}
    for entry in run.log_entries():
        if context.fingerprints.get(entry["stage"]) == entry["fingerprint"]:
            walls[entry["stage"]] = walls.get(entry["stage"], 0.0) + entry["wall"]
    return {stage: {"wall": walls.get(stage, 0.0), **_spent(context.manifest(stage))} for stage in context.fingerprints}


def _spent(manifest: Manifest) -> dict[str, float]:
    spent = [marker.seconds for marker in manifest.markers().values()]
    model, algebra, total = (sum(s.get(k, 0.0) for s in spent) for k in ("model", "algebra", "total"))
    return {"model": model, "algebra": algebra, "overhead": total - model - algebra}
