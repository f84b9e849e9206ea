"""Rows are plain Parquet; the columns of a user's own table are checked before use."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adatsq_pipe.storage import tables
from adatsq_pipe.storage.errors import StorageError

ROWS = [{"a": 1, "b": [1.5], "c": None}, {"a": 2, "b": [], "c": "x"}]


def test_rows_are_written_as_compressed_parquet(tmp_path: Path) -> None:
    tables.write(tmp_path / "t.parquet", ROWS)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column_names == ["a", "b", "c"] and table["a"].to_pylist() == [1, 2]
    assert table["b"].to_pylist() == [[1.5], []] and table["c"].to_pylist() == [None, "x"]
    assert pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_rows_come_back(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    assert tables.read(tmp_path / "t.parquet") == ROWS


def test_of_a_foreign_table_only_known_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"seed": [3], "other": [0], "prompt": ["a"]}), path)
    assert tables.columns(path, ["prompt"], ["seed", "image"]) == [{"seed": 3, "prompt": "a"}]
    assert tables.columns(path, ["prompt"]) == [{"prompt": "a"}]
    with pytest.raises(StorageError, match="has no column 'caption'; it has seed, other, prompt"):
        tables.columns(path, ["prompt", "caption"])


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"a,b\n1,2\n")
    for name in ("t.parquet", "nowhere.parquet"):
        with pytest.raises(StorageError, match=f"{name} is not readable as Parquet"):
            tables.columns(tmp_path / name, ["a"])
