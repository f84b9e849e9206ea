"""Units of a run directory at a URL: what the store has, in which order, and what another machine reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adatsq_pipe.storage import tensors
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.manifest import COMPLETE, Manifest
from adatsq_pipe.storage.remote import Remote
from tests.support import made_units as made
from tests.support.memory_store import RecordingStore, remote_of


@pytest.fixture
def store() -> RecordingStore:
    return RecordingStore()


def _there(store: RecordingStore, local: Path) -> Manifest:
    remote = remote_of(store, local)
    return Manifest("capture", local / "capture" / "ab", remote)


def _remote(manifest: Manifest) -> Remote:
    assert manifest.remote is not None
    return manifest.remote


def test_a_store_gets_the_bytes_before_the_marker(tmp_path: Path, store: RecordingStore) -> None:
    manifest = _there(store, tmp_path / "here")
    made.commit(manifest, "a/0", {"x": 1}, one=b"1", two=b"22")
    root = "/run/capture/ab"
    assert [sorted(names) for names in store.requests("put")] == [
        [f"{root}/units/a/0/one", f"{root}/units/a/0/two"],
        [f"{root}/markers/a/0.json"],
    ]
    assert store.contents()[f"{root}/units/a/0/two"] == b"22"
    assert json.loads(store.contents()[f"{root}/markers/a/0.json"])["value"] == {"x": 1}


def test_bytes_that_do_not_arrive_have_no_marker(
    tmp_path: Path, store: RecordingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("no route")

    manifest = _there(store, tmp_path / "here")
    monkeypatch.setattr(store, "put", refused)
    with pytest.raises(OSError, match="no route"):
        made.commit(manifest, "a/0", one=b"1")
    assert store.contents() == {} and not manifest.done("a/0") and not (manifest.folder / "markers").exists()


def test_another_machine_reads_what_the_first_one_uploaded(tmp_path: Path, store: RecordingStore) -> None:
    first, other = _there(store, tmp_path / "one"), _there(store, tmp_path / "two")
    for unit in ("a/0", "a/1"):
        made.commit(first, unit, {"of": unit}, one=b"1", two=b"22")
    assert other.done("a/0") and not other.done("a/2") and list(other.units()) == ["a/0"], (
        "only what was asked for is known"
    )
    assert list(other.units(refresh=True)) == ["a/0", "a/1"]
    store.calls.clear()
    assert {unit: marker.value for unit, marker in other.markers().items()} == {
        unit: {"of": unit} for unit in ("a/0", "a/1")
    }
    assert len(store.requests("get")) == 1, "markers are downloaded in one request"
    folder = other.local_folder("a/1")
    assert folder == tmp_path / "two/capture/ab/units/a/1"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"one": b"1", "two": b"22"}
    assert not (tmp_path / "two/capture/ab/units/a/0").exists()
    assert other.verify("a/0").value == {"of": "a/0"} and (tmp_path / "two/capture/ab/units/a/0/one").is_file()


def test_what_is_missing_in_a_store_is_listed_once_and_again_when_others_have_worked(
    tmp_path: Path, store: RecordingStore
) -> None:
    manifest, other = _there(store, tmp_path / "one"), _there(store, tmp_path / "two")
    made.commit(other, "a/0", one=b"1")
    _remote(manifest).refresh()
    assert store.requests("find")[-1] == ["/run"] and _remote(manifest).is_current
    assert manifest.missing(["a/2", "a/0", "a/1"]) == ["a/2", "a/1"]
    assert len(store.requests("find")) == 1 and not _remote(manifest).is_current
    made.commit(other, "a/1", one=b"1")
    assert manifest.missing(["a/2", "a/0", "a/1"]) == ["a/2"]
    assert store.requests("find")[1:] == [["/run/capture/ab/markers"]]


def test_bytes_that_differ_in_the_mirror_are_downloaded_again(tmp_path: Path, store: RecordingStore) -> None:
    manifest = _there(store, tmp_path / "here")
    made.commit(manifest, "a/0", one=b"hello", two=b"kept")
    (manifest.unit_folder("a/0") / "one").write_bytes(b"jello")
    manifest.verify("a/0")
    assert (manifest.unit_folder("a/0") / "one").read_bytes() == b"hello"
    assert store.requests("get") == [["/run/capture/ab/units/a/0/one"]]


@pytest.mark.parametrize(("data", "words"), [(b"jello", "digest"), (b"hello!", "has 6 bytes, its marker says 5")])
def test_bytes_that_differ_in_the_store_are_not_served(
    data: bytes, words: str, tmp_path: Path, store: RecordingStore
) -> None:
    made.commit(_there(store, tmp_path / "one"), "a/0", one=b"hello")
    store.pipe_file("/run/capture/ab/units/a/0/one", data)
    with pytest.raises(DamagedUnit, match=words):
        _there(store, tmp_path / "two").verify("a/0")
    store.rm("/run/capture/ab/units/a/0/one")
    with pytest.raises(DamagedUnit, match="is missing"):
        _there(store, tmp_path / "two").verify("a/0")


def test_withdrawing_removes_the_marks_from_the_store(tmp_path: Path, store: RecordingStore) -> None:
    manifest, other = _there(store, tmp_path / "one"), _there(store, tmp_path / "two")
    made.commit(manifest, "a/0", one=b"1")
    made.commit(manifest, COMPLETE)
    assert other.read("a/0").unit == "a/0" and other.done(COMPLETE)
    manifest.withdraw("a/0")
    assert list(store.contents()) == ["/run/capture/ab/units/a/0/one"]
    assert list(manifest.units()) == [] and not manifest.done("a/0") and not manifest.done(COMPLETE)
    assert list(other.units(refresh=True)) == [], "the mirror's copy of a marker does not count"
    with pytest.raises(KeyError):
        other.read("a/0")
    assert not (other.folder / "markers/a/0.json").exists()


def test_discarding_removes_the_unit_from_the_store(tmp_path: Path, store: RecordingStore) -> None:
    manifest = _there(store, tmp_path / "one")
    made.commit(manifest, "a/0", one=b"1", two=b"22")
    made.commit(manifest, "a/01", one=b"1")
    manifest.discard("a/0")
    assert list(store.contents()) == ["/run/capture/ab/markers/a/01.json", "/run/capture/ab/units/a/01/one"]
    assert [sorted(names) for names in store.requests("rm")] == [
        ["/run/capture/ab/markers/a/0.json"],
        ["/run/capture/ab/units/a/0/one", "/run/capture/ab/units/a/0/two"],
    ]
    assert not manifest.unit_folder("a/0").exists()


def test_a_store_keeps_why_a_unit_failed_until_it_is_done(tmp_path: Path, store: RecordingStore) -> None:
    manifest = _there(store, tmp_path / "one")
    manifest.open_unit("a/0")
    manifest.fail("a/0", "ValueError: no")
    assert json.loads(store.contents()["/run/capture/ab/failures/a/0.json"])["reason"] == "ValueError: no"
    made.commit(manifest, "a/0")
    assert list(store.contents()) == ["/run/capture/ab/markers/a/0.json"] and manifest.failures() == {}


def test_a_pack_that_is_altered_in_the_mirror_is_downloaded_again(tmp_path: Path, store: RecordingStore) -> None:
    written = {f"rows:{i}": torch.full((2, 3), float(i + 1)) for i in range(3)}
    here, elsewhere = _there(store, tmp_path / "here"), _there(store, tmp_path / "elsewhere")
    tensors.write_stacked(here.open_unit("u"), written)
    here.commit("u")
    path = elsewhere.unit_folder("u") / "tensors.zarr.zip"
    elsewhere.verify("u", tensors=["rows:1"], once=True)
    whole = path.read_bytes()
    made.spoil(path, whole.index(written["rows:1"].numpy().tobytes()))
    elsewhere.verify("u", tensors=["rows:1"], once=True)
    assert path.read_bytes() == whole and torch.equal(
        tensors.read(path.parent, ["rows:1"])["rows:1"], written["rows:1"]
    )
