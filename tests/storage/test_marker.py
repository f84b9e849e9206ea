"""A marker's file, byte for byte, and what makes one invalid."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from adatsq_pipe.storage.marker import Marker, read_marker

FILES = {"bytes": (5, "ab" * 32), "deep/more": (1000, "cd" * 32)}


def _sha(value: object) -> str:
    """SHA-256 of the canonical text of a value without floats."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _body(**fields: object) -> dict[str, object]:
    return {"unit": "a/0", "files": {"x": [1, "0" * 64]}, "value": 1, "seconds": {}, "host": "h", **fields}


def _write(path: Path, body: dict[str, object]) -> Path:
    path.write_text(json.dumps({**body, "self": _sha(body)}))
    return path


def test_a_marker_is_json_with_a_digest_of_itself() -> None:
    marker = Marker(unit="a/0", files=FILES, value={"x": [1, None]}, seconds={"total": 2}, host="h")
    body = {
        "unit": "a/0",
        "files": {"bytes": [5, "ab" * 32], "deep/more": [1000, "cd" * 32]},
        "value": {"x": [1, None]},
        "seconds": {"total": 2},
        "host": "h",
    }
    assert marker.to_json() == json.dumps({**body, "self": _sha(body)}, indent=1)


def test_memory_is_written_only_where_it_says_something() -> None:
    full = Marker(unit="u", files={}, micro_batch={"from": 4, "to": 2}, peak=7)
    assert json.loads(full.to_json()).items() >= {"micro_batch": {"from": 4, "to": 2}, "peak": 7}.items()
    assert set(json.loads(Marker(unit="u", files={}).to_json())) == {
        "unit",
        "files",
        "value",
        "seconds",
        "host",
        "self",
    }


def test_a_digest_covers_the_digests_of_the_files_and_the_value_alone() -> None:
    by_hand = _sha({"files": {"bytes": "ab" * 32, "deep/more": "cd" * 32}, "value": [1]})
    assert Marker(unit="a/0", files=FILES, value=[1]).digest == by_hand
    other = Marker(unit="b", files=FILES, value=[1], seconds={"t": 9}, host="x", micro_batch={"from": 2}, peak=3)
    assert other.digest == by_hand


def test_a_value_without_a_canonical_text_is_refused() -> None:
    with pytest.raises(TypeError, match="finite"):
        Marker(unit="u", files={}, value=float("nan")).to_json()


def test_a_marker_is_read_as_it_was_written(tmp_path: Path) -> None:
    marker = read_marker(str(_write(tmp_path / "m", _body(value={"x": 1}, peak=5))))
    assert marker == Marker(unit="a/0", files={"x": (1, "0" * 64)}, value={"x": 1}, host="h", peak=5)
    with pytest.raises(FileNotFoundError):
        read_marker(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["../../run.json", "/etc/hostname", "a/../../b", "..", "a\\..\\b", ""])
def test_a_marker_whose_names_lead_out_of_the_unit_is_invalid(name: str, tmp_path: Path) -> None:
    assert read_marker(str(_write(tmp_path / "file", _body(files={name: [1, "0" * 64]})))) is None
    assert read_marker(str(_write(tmp_path / "unit", _body(unit=name)))) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "{}", '{"self": "x"}', "\x00"])
def test_a_file_that_is_no_marker_is_invalid(text: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_text(text)
    assert read_marker(str(tmp_path / "m")) is None


@pytest.mark.parametrize("fields", [{"files": [1]}, {"files": {"x": [1]}}, {"surprise": 1}])
def test_a_marker_of_another_form_is_invalid(fields: dict[str, object], tmp_path: Path) -> None:
    assert read_marker(str(_write(tmp_path / "m", _body(**fields)))) is None


@pytest.mark.parametrize(
    ("old", "new"), [('"value": 1', '"value": 2'), ("[1, ", "[2, "), ('"host": "h"', '"host": "i"')]
)
def test_a_marker_with_an_altered_field_is_invalid(old: str, new: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "m", _body())
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert read_marker(str(path)) is None


def test_a_marker_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    path = _write(tmp_path / "m", _body(value=1))
    first, stat = read_marker(str(path)), path.stat()
    assert first is not None and read_marker(str(path)) is first, "an unchanged file is parsed once"
    os.replace(_write(tmp_path / "next", _body(value=2)), path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = read_marker(str(path))
    assert second is not None and second.value == 2, "another inode of the same size and time"
    with path.open("r+") as file:
        file.write(json.dumps({**_body(value=3), "self": _sha(_body(value=3))}))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    third = read_marker(str(path))
    assert third is not None and third.value == 3, "the same inode at another time"
