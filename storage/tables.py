"""Rows as Parquet files, whole or absent."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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
