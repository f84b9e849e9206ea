"""What evaluate measured of the quantized model's pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.evaluation import perceptual
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.storage import tables


def quantized_units(context: Context) -> list[str]:
    """Evaluate's units of the quantized model: one for each seed and batch of captions."""
    return [unit for unit in context.manifest("evaluate").units() if unit.startswith("quantized/")]


def read_rows(context: Context, name: str) -> list[tables.Row]:
    """The rows of the Parquet file `name` of all these units."""
    manifest = context.manifest("evaluate")
    return [row for unit in quantized_units(context) for row in tables.read(manifest.local_folder(unit) / name)]


def bits_run(context: Context) -> float | None:
    """Mean activation bits that the quantized model ran at, over all its pictures; None where nothing is rounded, or
    where evaluate was done before it counted them."""
    manifest, found = context.manifest("evaluate"), list[tuple[float, int]]()
    for unit in quantized_units(context):
        value = manifest.read(unit).value
        if not isinstance(value, dict) or "activation_bits" not in value:
            return None
        found.append((value["activation_bits"], len(tables.read(manifest.local_folder(unit) / "samples.parquet"))))
    return sum(bits * pictures for bits, pictures in found) / sum(pictures for _, pictures in found)


def samples(context: Context) -> list[tables.Row]:
    """The measurements of every picture: all captions with the first seed, then with the next. Each row has its
    caption's `kind`, where captions have kinds, and the optional metrics, where they are done."""
    rows, scores = read_rows(context, "samples.parquet"), _scores(context)
    scored = [row | more for row, more in zip(rows, scores, strict=True)] if scores else rows
    return list(with_kinds(context, scored))


def _scores(context: Context) -> list[tables.Row]:
    """The optional metrics of every picture; none where they were not asked for, or are not done."""
    if perceptual.STAGE.name not in context.fingerprints:
        return []
    manifest = context.manifest(perceptual.STAGE.name)
    units = [unit.replace("quantized/", "scores/") for unit in quantized_units(context)]
    if not all(manifest.done(unit) for unit in units):
        return []
    return [row for unit in units for row in tables.read(manifest.local_folder(unit) / perceptual.ROWS)]


def with_kinds(context: Context, rows: Iterable[tables.Row]) -> Iterator[tables.Row]:
    """The rows of all samples in order, each with its caption's `kind` where captions have kinds."""
    kinds = context.settings[EvaluateSettings].kinds
    for place, row in enumerate(rows):
        yield {**row, "kind": kinds[place % len(kinds)]} if kinds else row
