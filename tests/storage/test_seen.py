"""The markers alone say what is done; `seen.json` spares opening them, and can neither lose nor invent a unit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adatsq_pipe.storage import manifest as manifests
from adatsq_pipe.storage import seen
from adatsq_pipe.storage.files import Stamp
from adatsq_pipe.storage.manifest import COMPLETE, Manifest
from adatsq_pipe.storage.marker import Marker, read_marker
from adatsq_pipe.storage.seen import Sight, sights
from tests.support.memory_store import RecordingStore, remote_of

UNITS = [f"layer/{i}" for i in range(4)]
OLD = 10**18


def _commit(manifest: Manifest, unit: str, data: bytes) -> None:
    (manifest.open_unit(unit) / "bytes").write_bytes(data)
    manifest.commit(unit, seconds={"resident": float(len(data))})
    _age(manifest, unit)


def _age(manifest: Manifest, unit: str, when: int = OLD) -> None:
    os.utime(manifest.folder / f"markers/{unit}.json", ns=(when, when))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """A finished stage of four units of 1 to 4 bytes whose markers are old, seen once."""
    monkeypatch.setattr(seen, "WORTH", 0)
    manifest = Manifest("solve", tmp_path / "solve")
    for i, unit in enumerate(UNITS):
        _commit(manifest, unit, b"x" * (i + 1))
    manifest.open_unit(COMPLETE)
    manifest.commit(COMPLETE, value=dict.fromkeys(UNITS, "digest"))
    _age(manifest, COMPLETE)
    assert sights(manifest) == (_whole(), True) and (manifest.folder / seen.FILE).is_file()
    return manifest


def _whole() -> dict[str, Sight]:
    return {f"layer/{i}": Sight("", i + 1, i + 1) for i in range(4)}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The markers that are opened."""
    found: list[str] = []

    def recorded(path: str, stamp: Stamp | None = None) -> Marker | None:
        marker = read_marker(path, stamp)
        found.append(path.rpartition("markers/")[2])
        return marker

    monkeypatch.setattr(manifests, "read_marker", recorded)
    return found


def test_what_was_seen_is_not_opened_again(stage: Manifest, opened: list[str]) -> None:
    assert sights(stage) == (_whole(), True) and opened == []


def test_a_unit_that_is_done_since_is_seen(stage: Manifest, opened: list[str]) -> None:
    """As after a kill between its marker and `seen.json`."""
    _commit(stage, "layer/9", b"12345")
    opened.clear()
    assert sights(stage) == ({**_whole(), "layer/9": Sight("", 5, 5)}, True)
    assert "layer/9.json" in opened and "layer/0.json" not in opened


def test_a_unit_whose_marker_is_gone_is_gone(stage: Manifest) -> None:
    (stage.folder / "markers/layer/2.json").unlink()
    rest = {unit: sight for unit, sight in _whole().items() if unit != "layer/2"}
    assert sights(stage) == (rest, False)
    stage.withdraw("layer/1")
    assert sights(stage) == ({unit: rest[unit] for unit in ("layer/0", "layer/3")}, False)


def test_a_stage_whose_mark_is_gone_is_not_finished(stage: Manifest) -> None:
    (stage.folder / f"markers/{COMPLETE}.json").unlink()
    assert sights(stage) == (_whole(), False)


def test_the_sizes_of_files_are_looked_at_every_time(stage: Manifest) -> None:
    (stage.folder / "units/layer/0/bytes").write_bytes(b"xx")
    (stage.folder / "units/layer/3/bytes").unlink()
    wrong = Sight("a file is missing or has the wrong size")
    assert sights(stage) == ({**_whole(), "layer/0": wrong, "layer/3": wrong}, True)


def test_a_damaged_marker_is_named_and_never_kept(stage: Manifest) -> None:
    path = stage.folder / "markers/layer/1.json"
    path.write_text(path.read_text()[:-9])
    _age(stage, "layer/1", OLD + 1)
    for _ in range(2):
        found, complete = sights(stage)
        assert "not as it was written" in found["layer/1"].what and complete
        assert {**found, "layer/1": _whole()["layer/1"]} == _whole()


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_marker_that_was_replaced_is_opened(change: str, stage: Manifest, opened: list[str]) -> None:
    path = stage.folder / "markers/layer/1.json"
    if change == "size":
        path.write_text(path.read_text() + " ")
        _age(stage, "layer/1")
    elif change == "time":
        _age(stage, "layer/1", OLD + 1)
    else:
        path.with_name("copy").write_bytes(path.read_bytes())
        os.replace(path.with_name("copy"), path)
        _age(stage, "layer/1")
    assert sights(stage) == (_whole(), True) and opened == ["layer/1.json"]


def test_a_marker_of_this_moment_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one of the same size might get the same time and inode."""
    monkeypatch.setattr(seen, "WORTH", 0)
    manifest = Manifest("solve", tmp_path)
    _commit(manifest, "old", b"1")
    (manifest.open_unit("young") / "bytes").write_bytes(b"2")
    manifest.commit("young")
    sights(manifest)
    digest, _, text = (tmp_path / seen.FILE).read_bytes().partition(b"\n")
    assert list(json.loads(text)["units"]) == ["old"] and len(digest) == 64


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _altered(path: Path) -> None:
    data = path.read_bytes()
    assert b",4,0,4]" in data
    path.write_bytes(data.replace(b",4,0,4]", b",4,0,5]"))


@pytest.mark.parametrize("damage", [_torn, _altered, Path.unlink, lambda path: path.write_bytes(b"\xff\n{}")])
def test_a_file_that_is_not_as_it_was_written_counts_for_nothing(
    damage: Callable[[Path], object], stage: Manifest, opened: list[str]
) -> None:
    damage(stage.folder / seen.FILE)
    assert sights(stage) == (_whole(), True)
    assert opened == [f"{unit}.json" for unit in [*UNITS, COMPLETE]]
    opened.clear()
    assert sights(stage) == (_whole(), True) and opened == [], "it was written again"


def test_where_nothing_can_be_written_all_is_read(stage: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (stage.folder / seen.FILE).unlink()
    monkeypatch.setattr(seen, "write_bytes", refused)
    assert sights(stage) == (_whole(), True) and not (stage.folder / seen.FILE).exists()


def test_few_markers_are_not_worth_a_file(tmp_path: Path) -> None:
    manifest = Manifest("solve", tmp_path)
    _commit(manifest, "u", b"1")
    assert sights(manifest) == ({"u": Sight("", 1, 1)}, False) and not (tmp_path / seen.FILE).exists()


def test_units_of_other_files_keep_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "WORTH", 0)
    manifest = Manifest("solve", tmp_path)
    for i in range(30):
        folder = manifest.open_unit(f"u{i:02d}")
        for name in range(i % 12):
            (folder / f"f{name}").write_bytes(b"x" * (name + 1))
        manifest.commit(f"u{i:02d}")
        _age(manifest, f"u{i:02d}")
    wanted = {f"u{i:02d}": Sight("", (i % 12) * (i % 12 + 1) // 2) for i in range(30)}
    assert sights(manifest) == sights(manifest) == (wanted, False)


def test_in_a_store_markers_are_listed_and_nothing_is_kept(tmp_path: Path) -> None:
    remote = remote_of(RecordingStore(), tmp_path)
    manifest = Manifest("solve", tmp_path / "solve", remote)
    for unit in UNITS[:2]:
        (manifest.open_unit(unit) / "bytes").write_bytes(b"1")
        manifest.commit(unit)
    assert sights(manifest) == ({UNITS[0]: Sight(), UNITS[1]: Sight()}, False)
    manifest.open_unit(COMPLETE)
    manifest.commit(COMPLETE, value=dict.fromkeys(UNITS[:2], "digest"))
    assert sights(manifest)[1] and not (manifest.folder / seen.FILE).exists()
