"""Rows as Parquet files, written atomically."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.files import write_bytes

Row: TypeAlias = dict[str, Any]
"""Values by column name. Their types are those of the file's columns, known only when it is read."""


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `rows` (the same keys in each; plain values or lists) to `path`."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read(path: Path) -> list[Row]:
    """The rows of `path`."""
    with pq.ParquetFile(path) as file:  # pq.read_table imports pyarrow.dataset, which takes longer than to read
        rows: list[Row] = file.read().to_pylist()
    return rows


def columns(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """The rows of `path`, with the `required` columns and those `optional` ones that the file has.

    Raises StorageError if the file is not Parquet or lacks a required column.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(f"{path} is not readable as Parquet: {error}") from None
    names = file.schema_arrow.names
    for name in required:
        if name not in names:
            raise StorageError(f"{path} has no column {name!r}; it has {', '.join(names)}")
    rows: list[Row] = file.read(columns=[n for n in names if n in (*required, *optional)]).to_pylist()
    return rows
