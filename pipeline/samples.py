"""What evaluate measured of the quantized model's pictures."""

from __future__ import annotations

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.storage import tables


def quantized_units(context: Context) -> list[str]:
    """Evaluate's units of the quantized model: one for each seed and batch of captions."""
    return [unit for unit in context.manifest("evaluate").units() if unit.startswith("quantized/")]


def read_rows(context: Context, name: str) -> list[tables.Row]:
    """The rows of the Parquet file `name` of all these units."""
    manifest = context.manifest("evaluate")
    return [row for unit in quantized_units(context) for row in tables.read(manifest.local_folder(unit) / name)]


def samples(context: Context) -> list[tables.Row]:
    """The measurements of every picture: all captions with the first seed, then with the next."""
    return read_rows(context, "samples.parquet")
