"""What a finished run says: report/summary.json and the pictures, full precision above quantized."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from adatsq_pipe.pipeline import finished, pictures
from adatsq_pipe.pipeline.by_kind import by_kind, grouped, metrics_of
from adatsq_pipe.pipeline.card import SHEET, SHOWN, card
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.costs import capture_cost, search_cost, seconds
from adatsq_pipe.pipeline.facts import facts_of
from adatsq_pipe.pipeline.notes import Notes
from adatsq_pipe.pipeline.plan import Step
from adatsq_pipe.pipeline.plots import ahead, front
from adatsq_pipe.pipeline.plots import steps as by_step
from adatsq_pipe.pipeline.plots.ahead import POLICY, WEIGHT_BITS, PlotsAhead
from adatsq_pipe.pipeline.samples import bits_run, quantized_units, read_rows, samples
from adatsq_pipe.pipeline.summary import FILE, PAGE, UNFINISHED, Bits, Mean, PerStep, Quality, SearchCost, Size, Summary
from adatsq_pipe.pipeline.text_encoders import text_encoders_of
from adatsq_pipe.stages.allocation.points import AssembleSettings, point_of
from adatsq_pipe.stages.allocation.trellis import SearchSettings
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.evaluation import perceptual
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.scenes.world import metrics
from adatsq_pipe.stages.text import effect, text_encoder
from adatsq_pipe.stages.weights.widths import weight_widths
from adatsq_pipe.storage import arrays
from adatsq_pipe.storage.files import clone_tree, write_text
from adatsq_pipe.storage.fingerprint import digest
from adatsq_pipe.storage.model_files import model_name
from adatsq_pipe.storage.published import PublishedModel
from adatsq_pipe.storage.rundir import RunDir
from adatsq_pipe.storage.tables import Row

FRONT = "front.png"
"""Name of the plot that only some recipes have, as WEIGHT_BITS."""
SIDE_BY_SIDE, STEPS = "side_by_side.png", "steps.png"
FILES = (FILE, SIDE_BY_SIDE, "side_by_side.txt", SHEET, "sheet.txt", POLICY, STEPS, FRONT, WEIGHT_BITS, PAGE)
"""What a report may consist of."""


LAST = ("evaluate", effect.STAGE.name, perceptual.STAGE.name)
"""The stages that measure, as far as they are part of a run."""
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
    plots: PlotsAhead | None = None,
) -> bool:
    """Write the report unless it stands already for this very run, or in any case. False if evaluate has not finished,
    or another stage that measures.

    `plots` has those that were drawn already, if any. A plot that fails is left out: `say` gets a line on it, and the
    summary has it. Raises DamagedUnit.
    """
    done = {step.stage.name: step for step in steps}
    if not all(done[name].complete for name in LAST if name in done):
        return False
    path = run.report / FILE
    if not again and finished.stands(run, context.fingerprints, _additions(context)):
        return True
    _verify(context)
    run.report.mkdir(exist_ok=True)
    notes = Notes()
    summary = summarize(config, run, context, notes)
    _plot(run.report, context, summary, notes, plots.of(context) if plots else {})
    from adatsq_pipe.pipeline.page.content import write_page  # imports plotly, which a run with nothing to do needs not

    write_page(config, run, context, summary, notes)
    summary = replace(summary, facts=replace(summary.facts, report=dict(notes)))
    for part, why in notes.items():
        say(f"report: {part}: {why}")
    _publish(config, run, context, summary)
    write_text(path, json.dumps(asdict(summary), indent=1) + "\n")
    run.upload("report")
    fingerprints = context.fingerprints
    PublishedModel(run.published_folder(fingerprints["assemble"], fingerprints["evaluate"])).vouch(run.report, FILES)
    return True


def _additions(context: Context) -> str:
    """What Summary.additions says of this run."""
    kinds, scored = context.settings[EvaluateSettings].kinds, context.fingerprints.get(perceptual.STAGE.name, "")
    return digest([kinds, scored]) if kinds or scored else ""


def _verify(context: Context) -> None:
    """Hash the files of the units that the report reads: what is published must be what was computed."""
    stages = ("search", text_encoder.STAGE.name, "assemble", "reference", *LAST)
    for stage in [stage for stage in stages if stage in context.fingerprints]:
        for unit in context.manifest(stage).units():
            context.read(stage, unit)


def _plot(folder: Path, context: Context, summary: Summary, notes: Notes, drawn: Mapping[str, bytes]) -> None:
    """The plots; of those in `drawn` the file is there already. Those that fail, or say nothing of this recipe, are
    removed where an earlier report has left them."""
    for name in (*FILES[1:], UNFINISHED):
        (folder / name).unlink(missing_ok=True)
    drawings: dict[str, Callable[[], object]] = {
        SIDE_BY_SIDE: lambda: pictures.draw(context, folder / SIDE_BY_SIDE, summary.title),
        SHEET: lambda: pictures.draw(context, folder / SHEET, summary.title, count=SHOWN, inches=3.4) and None,
        **{name: partial(draw, folder / name) for name, draw in ahead.drawings(context).items()},
        STEPS: lambda: by_step.draw(summary.quality.per_step, folder / STEPS),
    }
    if front.has_front(context):
        drawings[FRONT] = lambda: front.draw(context, folder / FRONT)
    for name, drawing in drawings.items():
        with notes.of(name):
            if name in drawn:
                (folder / name).write_bytes(drawn[name])
            elif line := drawing():
                notes[name] = str(line)
            continue
        (folder / name).unlink(missing_ok=True)


def _publish(config: RunConfig, run: RunDir, context: Context, summary: Summary) -> None:
    """The assembled folder with a card that says what it scores; `model` is that from now on."""
    manifest = context.manifest("assemble")
    place = run.published_folder(context.fingerprints["assemble"], context.fingerprints["evaluate"])
    text, added = card(config, context, summary), dict[str, bytes]()
    for name in (POLICY, SHEET):
        if (run.report / name).exists():
            added[name] = (run.report / name).read_bytes()
        else:
            text = "".join(line for line in text.splitlines(keepends=True) if f"({name})" not in line)
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
    widths, asked = weight_widths(context), config.settings[EvaluateSettings]
    of_captions = grouped(drawn, len(asked.prompts))
    sizes, name = context.manifest("assemble").read("model").value, model_name(config.model)
    return Summary(
        title=f"{name}: {sizes['weight_bits']:.2f}-bit weights, {point.mean_bits:.2f}-bit activations",
        fingerprint=context.fingerprints["evaluate"],
        model=str(config.model),
        quality=Quality(
            captions=len(asked.prompts),
            seeds=asked.seeds,
            latent_error=_mean(of_captions, "latent_error"),
            latent_psnr=_mean(of_captions, "latent_psnr"),
            psnr=_mean(of_captions, "psnr"),
            ssim=_mean(of_captions, "ssim"),
            asked_for=scores,
            per_step=_per_step(read_rows(context, "steps.parquet")),
            by_kind=by_kind(drawn, len(asked.prompts)) if asked.kinds else [],
            metrics=metrics_of(of_captions),
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
        facts=facts_of(config, run, context),
        capture_over_bare_forwards=capture_cost(context),
        seconds=seconds(run, context),
        text_encoders=text_encoders_of(config, context, _mean),
        additions=_additions(context),
    )


def _per_step(rows: list[Row]) -> PerStep:
    """Means over captions and seeds, by step."""
    by_step = [[row for row in rows if row["step"] == t] for t in range(1 + max(row["step"] for row in rows))]
    return PerStep(
        latent_relative_error=[statistics.fmean(row["error"] for row in step) for step in by_step],
        latent_psnr_db=[statistics.fmean(row["psnr"] for row in step) for step in by_step],
    )


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


def _mean(captions: list[list[Row]], name: str) -> Mean:
    """Mean of the pictures, with its standard error over captions, each the mean of its seeds: draws of one caption are
    alike, and count as one."""
    values = [[MOST_DECIBELS if row[name] == math.inf else row[name] for row in rows] for rows in captions]
    means = [statistics.fmean(seeds) for seeds in values]
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    every = [value for seeds in values for value in seeds]
    return Mean(mean=statistics.fmean(every), standard_error=error, worst=_worst(name, every))


def _worst(name: str, values: list[float]) -> float:
    return max(values) if name == "latent_error" else min(values)
