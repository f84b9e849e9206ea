"""What the page of a run shows, read from its units and its summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from adatsq_pipe.pipeline.by_kind import by_kind
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.kind_quality import METRICS, KindQuality
from adatsq_pipe.pipeline.notes import Notes
from adatsq_pipe.pipeline.page import charts, images, render
from adatsq_pipe.pipeline.page.images import Pair
from adatsq_pipe.pipeline.page.tables import Cell, Table
from adatsq_pipe.pipeline.samples import samples
from adatsq_pipe.pipeline.summary import PAGE, Summary, TextEncoders
from adatsq_pipe.pipeline.versions import versions
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.storage.rundir import RunDir

OPTIONAL = ("kinds", "encoders", "embeddings")
"""Tables that a page without such rows lacks."""


def write_page(config: RunConfig, run: RunDir, context: Context, summary: Summary, notes: Notes) -> Path | None:
    """Write the pictures and the page of a finished run. What fails is noted, and left out; None if nothing is left."""
    pairs = list[Pair]()
    with notes.of(images.FOLDER):
        pairs = images.write_pictures(context, run.report)
    drawn = dict[str, charts.Chart]()
    for name, draw in charts.drawings(context, summary, run.display()).items():
        if name == "front" and context.settings[Recipe].allocation != "lagrangian":
            continue
        with notes.of(f"{PAGE}: {name}"):
            drawn[name] = draw()
    tables = dict[str, Table]()
    sources: dict[str, Callable[[], Table]] = {
        "pictures": lambda: _pictures(pairs),
        "kinds": lambda: _kinds(by_kind(samples(context), summary.quality.captions)),
        "layers": lambda: layers_table(context),
        "encoders": lambda: _encoders(summary.text_encoders),
        "embeddings": lambda: _embeddings(summary.text_encoders),
        "left": lambda: left_table(summary.facts.left_alone, summary.facts.layers_not_called),
        "seconds": lambda: seconds_table(summary.seconds),
        "space": lambda: space_table(summary.facts.disk, summary.facts.main_memory),
        "versions": lambda: versions_table(context),
    }
    for name, make in sources.items():
        with notes.of(f"{PAGE}: {name}"):
            if (table := make()).rows or name not in OPTIONAL:
                tables[name] = table
    with notes.of(PAGE):
        page = render.Page(
            summary=summary, pairs=pairs, charts=drawn, tables=tables, facts=_facts(summary), notes=dict(notes),
            configuration=configuration(config),
        )  # fmt: skip
        return render.write(page, run.report)
    return None


def _pictures(pairs: list[Pair]) -> Table:
    columns = {"latent_error": "latent error", "psnr": "PSNR, dB", "ssim": "SSIM"}
    optional = {"lpips": "LPIPS", "clip": "CLIP score", "clip_full_precision": "CLIP score, full precision"}
    columns |= {key: name for key, name in optional.items() if pairs and key in pairs[0].row}
    rows: list[list[Cell]] = [
        [p.row["prompt"], p.row["seed"], p.kind, *(p.row[key] for key in columns), p.full, p.quantized] for p in pairs
    ]
    names = ("caption", "seed", "kind", *columns.values(), "full precision", "quantized")
    return Table(name="pictures", columns=names, rows=rows)


def _kinds(kinds: Sequence[KindQuality]) -> Table:
    """Results by kind of caption; each mean has half its 95 % interval beside it."""
    scored = any(each.score for each in kinds)
    names = ["latents above error, dB", "PSNR, dB", "SSIM"] + ["prompt match", "difference"] * scored
    names += [METRICS[name][0] for name in (kinds[0].metrics if kinds else ())]
    rows: list[list[Cell]] = []
    for each in kinds:
        figures = [each.latent_db, each.psnr, each.ssim] + [each.score, each.score_difference] * scored
        figures += [metric.quantized for metric in each.metrics.values()]
        cells = [cell for f in figures for cell in ((f.mean, f.interval) if f else (None, None))]
        rows.append([each.kind, each.captions, each.pictures, *cells])
    columns = ["kind of caption", "captions", "pictures", *(column for name in names for column in (name, f"± {name}"))]
    formats = {column: ".3f" if column.endswith(("SSIM", "LPIPS")) else ".2f" for column in columns[3:]}
    return Table(name="kinds", columns=columns, rows=rows, formats=formats)


def _encoders(found: TextEncoders | None) -> Table:
    """Quantized text encoders and their sizes."""
    rows: list[list[Cell]] = [
        [e.name, e.kind, e.numbers, 100 * e.numbers_in_codes / max(1, e.numbers), e.bytes_bf16, e.bytes, e.ratio,
         e.weight_error, ", ".join(e.left)]
        for e in (found.encoders if found else ())
    ]  # fmt: skip
    columns = (
        "encoder", "class", "parameters", "in codes, %", "bytes in bfloat16", "bytes", "compression", "weight error",
        "could not be quantized",
    )  # fmt: skip
    formats = {"in codes, %": ".1f", "compression": ".2f", "weight error": ".4f"}
    return Table(name="encoders", columns=columns, rows=rows, formats=formats)


def _embeddings(found: TextEncoders | None) -> Table:
    """What the denoiser gets from quantized text encoders, against what it gets from the whole ones."""
    rows: list[list[Cell]] = [
        [e.argument, e.relative_error, e.cosine, e.least_cosine, e.vectors] for e in (found.embeddings if found else ())
    ]
    columns = ("argument", "relative error", "cosine, mean", "cosine, least", "vectors")
    formats = {"relative error": ".4f", "cosine, mean": ".5f", "cosine, least": ".4f"}
    return Table(name="embeddings", columns=columns, rows=rows, formats=formats)


def configuration(config: RunConfig) -> str:
    """Every setting, as JSON."""
    return json.dumps(
        {table.table: table.model_dump(mode="json") for table in (*config.settings, config.cluster)},
        indent=1, ensure_ascii=False, default=str,
    )  # fmt: skip


def layers_table(context: Context) -> Table:
    """Bits and error of every layer's weight, as solve left it; of a solve that is not finished, of those it has."""
    manifest, rows = context.manifest("solve"), list[list[Cell]]()
    solved = set(manifest.units())
    for layer in survey_of(context).layers:
        if f"layer/{layer.name}" not in solved:
            continue
        value = manifest.read(f"layer/{layer.name}").value
        rows.append(
            [layer.name, f"{layer.in_features} x {layer.out_features}", int(value["spec"]["weight_bits"]),
             float(value["error"]), float(value["damping"]), "tokens" if layer.rounded else "not rounded"]
        )  # fmt: skip
    columns = ("layer", "in x out", "weight bits", "weight error", "damping", "input")
    return Table(name="layers", columns=columns, rows=rows)


def left_table(left: Sequence[Mapping[str, object]], not_called: Sequence[str] = ()) -> Table:
    """The modules that are not quantized, and why."""
    rows: list[list[Cell]] = [
        [str(row.get(key, "")) for key in ("pattern", "kind", "count", "parameters", "why")] for row in left
    ]
    rows += [[name, "Linear", "1", "", "not called"] for name in not_called]
    return Table(name="left-alone", columns=("module", "kind", "count", "parameters", "why"), rows=rows)


def seconds_table(seconds: Mapping[str, Mapping[str, float]]) -> Table:
    """Where the time went, by stage."""
    columns = ("stage", "wall, s", "model, s", "linear algebra, s", "overhead, s")
    rows: list[list[Cell]] = [
        [stage, *(round(parts[key], 2) for key in ("wall", "model", "algebra", "overhead"))]
        for stage, parts in seconds.items()
    ]
    return Table(name="seconds", columns=columns, rows=rows)


def space_table(disk: Mapping[str, int], memory: Mapping[str, int]) -> Table:
    """Disk and main memory by stage; memory is that of the worker that held most."""
    rows: list[list[Cell]] = [
        [stage, size / 1e6, memory[stage] / 1e6 if memory.get(stage) else None] for stage, size in disk.items()
    ]
    columns = ("stage", "disk, MB", "main memory of a worker, MB")
    return Table(name="space", columns=columns, rows=rows, formats=dict.fromkeys(columns[1:], ".1f"))


def versions_table(context: Context) -> Table:
    """Versions of packages, and the stages' fingerprints."""
    rows: list[list[Cell]] = [[name, version] for name, version in versions().items()]
    rows += [[f"fingerprint of {stage}", digest] for stage, digest in context.fingerprints.items()]
    return Table(name="versions", columns=("what", "version or digest"), rows=rows)


def _facts(summary: Summary) -> list[tuple[str, str]]:
    """What a reader of the numbers should know, in lines; what there is nothing of is left out."""
    facts = summary.facts
    lines: list[tuple[str, str | Mapping[str, object]]] = [
        ("held-out captions", facts.captions),
        ("sensitivity", facts.sensitivity),
        ("batches halved, by stage", facts.micro_batch),
        ("damping raised, by layer", facts.damping_raised),
        ("memory, by stage", facts.memory),
        ("workers to a GPU, by stage", facts.placement),
        ("weight groups that were fitted, by layer", facts.groups_fitted),
        ("inputs left whole", ", ".join(facts.weight_only_layers)),
        ("called repeatedly and left alone", ", ".join(facts.layers_called_repeatedly_and_left_alone)),
        ("largest weight error", f"{facts.worst_layer_error[0]:.4g} in {facts.worst_layer_error[1]}"),
    ]
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in lines if value]
