"""Columns and counts of the command line's texts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

import click


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as text, two spaces between the columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join("  " + line.rstrip() for line in lines)


def many(count: int) -> str:
    """A count with two decimals of thousands, millions or billions."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def print_json(value: object) -> None:
    """Print one JSON document on stdout. Numbers that JSON does not have (infinite, none) are null."""
    click.echo(json.dumps(_finite(value), indent=1, allow_nan=False, default=str))


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
