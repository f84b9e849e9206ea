"""Rows as Parquet files, whole or absent."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.files import write_bytes


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `rows` (same keys each, plain values or lists) to `path`."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of `path`."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def columns(path: Path, wanted: Sequence[str], welcome: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows, of the columns `wanted` and those of `welcome` that are there.

    Raises StorageError if the file is no Parquet, or lacks a wanted column.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(f"{path} is not readable as Parquet: {error}") from None
    there = file.schema_arrow.names
    for name in wanted:
        if name not in there:
            raise StorageError(f"{path} has no column {name!r}; it has {', '.join(there)}")
    rows: list[dict[str, Any]] = file.read(columns=[n for n in there if n in (*wanted, *welcome)]).to_pylist()
    return rows
