"""A unit is done when it has a valid marker and its bytes match it. Digests are computed here with hashlib."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
from pathlib import Path

import pytest
import torch

from adatsq_pipe.storage import fingerprint, tensors
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.manifest import COMPLETE, Manifest
from adatsq_pipe.storage.remote import Remote
from tests.support.folder_form import unpack
from tests.support.memory_store import RecordingStore, remote_of


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _plain(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _commit(manifest: Manifest, unit: str, value: object = None, **files: bytes) -> None:
    folder = manifest.open_unit(unit)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    manifest.commit(unit, value=value, seconds={"total": 2.0})


def _unit(tmp_path: Path) -> Manifest:
    manifest = Manifest("capture", tmp_path)
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"hello")
    assert not manifest.done("a/0")
    manifest.commit("a/0", value={"x": 1}, seconds={"total": 2.0})
    return manifest


def test_a_marker_lists_files_with_sizes_and_digests(tmp_path: Path) -> None:
    manifest = Manifest("capture", tmp_path)
    folder = manifest.open_unit("a/0")
    (folder / "deep").mkdir()
    (folder / "deep" / "more").write_bytes(b"x" * 1000)
    (folder / "bytes").write_bytes(b"hello")
    manifest.commit("a/0", value={"x": [1, 0.5]}, seconds={"total": 2.0})
    body = json.loads((tmp_path / "markers/a/0.json").read_text())
    own = body.pop("self")
    assert body == {
        "unit": "a/0",
        "files": {"bytes": [5, _sha(b"hello")], "deep/more": [1000, _sha(b"x" * 1000)]},
        "value": {"x": [1, 0.5]},
        "seconds": {"total": 2.0},
        "host": socket.gethostname(),
    }
    assert own == _sha(_plain(body))
    assert (tmp_path / "units/a/0/deep/more").read_bytes() == b"x" * 1000


def test_a_marker_says_where_memory_was_short(tmp_path: Path) -> None:
    manifest = Manifest("capture", tmp_path)
    manifest.open_unit("u")
    manifest.commit("u", micro_batch={"from": 4, "to": 2}, peak=77)
    body = json.loads((tmp_path / "markers/u.json").read_text())
    assert body["micro_batch"] == {"from": 4, "to": 2} and body["peak"] == 77
    marker = Manifest("capture", tmp_path).read("u")
    assert marker.micro_batch == {"from": 4, "to": 2} and marker.peak == 77 and marker.host == socket.gethostname()


def test_a_unit_is_identified_by_its_bytes_and_its_value_alone(tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    by_hand = _sha(_plain({"files": {"bytes": _sha(b"hello")}, "value": {"x": 1}}))
    assert manifest.read("a/0").digest == by_hand
    manifest.withdraw("a/0")
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"hello")
    again = manifest.commit("a/0", value={"x": 1}, seconds={"total": 9.0}, micro_batch={"from": 2, "to": 1}, peak=5)
    assert again.digest == by_hand and again.seconds == {"total": 9.0}


def test_a_committed_unit_is_done_and_listed(tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    assert manifest.done("a/0") and manifest.verify("a/0").value == {"x": 1} and list(manifest.units()) == ["a/0"]
    with pytest.raises(KeyError, match="unit 'a/1' of stage capture is not done"):
        manifest.read("a/1")


def test_the_marker_is_moved_into_place_after_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, seen = os.replace, []

    def recorded(source: str, target: str) -> None:
        replace(source, target)
        seen.append((str(Path(target).relative_to(tmp_path)), (tmp_path / "units/a/0/bytes").is_file()))

    monkeypatch.setattr("os.replace", recorded)
    _unit(tmp_path)
    assert seen == [("units/a/0", True), ("markers/a/0.json", True)]


@pytest.mark.parametrize("damage", ["truncate", "grow", "alter", "remove", "marker", "marker field", "marker unit"])
def test_damage_is_never_served(damage: str, tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    path, marker = tmp_path / "units/a/0/bytes", tmp_path / "markers/a/0.json"
    if damage == "truncate":
        path.write_bytes(b"hell")
    elif damage == "grow":
        path.write_bytes(b"hello!")
    elif damage == "alter":
        path.write_bytes(b"jello")
    elif damage == "remove":
        path.unlink()
    elif damage == "marker":
        marker.write_text(marker.read_text()[:30])
    elif damage == "marker field":
        marker.write_text(marker.read_text().replace('"x": 1', '"x": 2'))
    else:
        _commit(manifest, "a/1", bytes=b"hello")
        marker.write_bytes((tmp_path / "markers/a/1.json").read_bytes())
    with pytest.raises(DamagedUnit, match="a/0"):
        manifest.verify("a/0")
    assert manifest.done("a/0") is (damage == "alter")
    assert manifest.missing(["a/0"]) == ([] if damage == "alter" else ["a/0"])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello!", "has 6 bytes, its marker says 5"),
        (b"jello", "does not have the digest in its marker"),
        (None, "is missing"),
    ],
)
def test_damage_is_described_with_the_file(data: bytes | None, words: str, tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    path = tmp_path / "units/a/0/bytes"
    path.write_bytes(data) if data else path.unlink()
    with pytest.raises(DamagedUnit, match=words) as caught:
        manifest.verify("a/0")
    assert str(path) in caught.value.what and (caught.value.stage, caught.value.unit) == ("capture", "a/0")


def test_a_marker_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    assert manifest.read("a/0").value == {"x": 1}
    manifest.withdraw("a/0")
    _commit(manifest, "a/0", {"x": 2}, bytes=b"hello")
    assert manifest.read("a/0").value == {"x": 2}


def test_a_second_try_at_a_finished_unit_changes_nothing(tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"other")
    second = manifest.commit("a/0", value={"x": 3})
    assert second == manifest.verify("a/0") and second.value == {"x": 1}
    assert (tmp_path / "units/a/0/bytes").read_bytes() == b"hello" and not (tmp_path / "attempts").exists()


def test_a_damaged_unit_is_replaced(tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    (tmp_path / "units/a/0/bytes").write_bytes(b"hell")
    (tmp_path / "units/a/0/more").write_bytes(b"x")
    _commit(manifest, "a/0", {"x": 4}, bytes=b"hello")
    assert manifest.verify("a/0").value == {"x": 4} and not (tmp_path / "units/a/0/more").exists()


def test_why_a_unit_failed_is_kept_until_it_is_done(tmp_path: Path) -> None:
    manifest = Manifest("capture", tmp_path)
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"hel")
    manifest.fail("a/0", "Traceback ...\nValueError: no")
    assert json.loads((tmp_path / "failures/a/0.json").read_text()) == {
        "host": socket.gethostname(),
        "reason": "Traceback ...\nValueError: no",
    }
    assert manifest.failures() == {"a/0": "Traceback ...\nValueError: no"} and not manifest.done("a/0")
    assert not manifest.attempt_folder("a/0").exists() and not (tmp_path / "units").exists()
    (tmp_path / "failures/torn.json").write_text("{")
    (tmp_path / "failures/other.json").write_text("[]")
    _commit(manifest, "a/0", bytes=b"hello")
    assert manifest.failures() == {} and manifest.done("a/0") and not (tmp_path / "failures/a/0.json").exists()


def test_sweep_removes_what_killed_processes_left(tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    manifest.open_unit("a/1")
    assert manifest.attempt_folder("a/1").is_dir() and not manifest.attempt_folder("a/0").exists()
    manifest.sweep()
    assert not (tmp_path / "attempts").exists() and manifest.done("a/0") and list(manifest.units()) == ["a/0"]


def test_a_second_try_starts_in_an_empty_folder_of_its_process(tmp_path: Path) -> None:
    manifest = Manifest("capture", tmp_path)
    folder = manifest.open_unit("a/0")
    assert folder == tmp_path / "attempts" / f"{socket.gethostname()}-{os.getpid()}" / "a" / "0"
    (folder / "torn").touch()
    assert manifest.open_unit("a/0") == folder and list(folder.iterdir()) == []


def test_a_commit_leaves_the_attempts_of_others_alone(tmp_path: Path) -> None:
    manifest = Manifest("capture", tmp_path)
    other = tmp_path / "attempts" / "elsewhere-1" / "a" / "0"
    other.mkdir(parents=True)
    manifest.open_unit("b")
    _commit(manifest, "a/0", bytes=b"hello")
    assert other.is_dir() and manifest.attempt_folder("b").is_dir() and not manifest.attempt_folder("a").exists()


@pytest.mark.parametrize("code", [errno.ENOTEMPTY, errno.EEXIST])
def test_two_processes_that_move_at_once_both_succeed(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, refusals = os.replace, [code, code]

    def raced(source: str, target: str) -> None:
        if refusals and "units" in str(target):
            raise OSError(refusals.pop(), "raced")
        replace(source, target)

    monkeypatch.setattr("os.replace", raced)
    assert _unit(tmp_path).verify("a/0").value == {"x": 1} and not refusals


def test_a_move_that_cannot_succeed_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"now": errno.ENOSPC}

    def refused(source: str, target: str) -> None:
        raise OSError(codes["now"], "refused")

    monkeypatch.setattr("os.replace", refused)
    with pytest.raises(OSError, match="refused"):
        _unit(tmp_path)
    codes["now"] = errno.ENOTEMPTY
    with pytest.raises(FileExistsError, match="another process"):
        _unit(tmp_path)
    assert not (tmp_path / "markers").exists()


def test_units_are_listed_in_order_without_the_stages_own_mark(tmp_path: Path) -> None:
    manifest = Manifest("capture", tmp_path)
    for unit in ("b/1", "a.json.x", "b-0", "a/9"):
        _commit(manifest, unit)
    manifest.open_unit(COMPLETE)
    manifest.commit(COMPLETE, value=["a/9", "b/1"])
    (tmp_path / "markers" / "notes.txt").touch()
    (tmp_path / "markers" / ".partial-x.json").touch()
    assert list(manifest.units()) == list(manifest.markers()) == ["a.json.x", "a/9", "b-0", "b/1"]
    assert manifest.read(COMPLETE).value == ["a/9", "b/1"] and manifest.done(COMPLETE)
    assert manifest.missing(["z", "a/9", "c"]) == ["z", "c"] and manifest.local_folder("a/9") == tmp_path / "units/a/9"


def test_a_withdrawn_unit_is_neither_done_nor_listed_and_the_stage_is_not_complete(tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    _commit(manifest, "b")
    manifest.open_unit(COMPLETE)
    manifest.commit(COMPLETE, value=["a/0", "b"])
    manifest.withdraw("a/0")
    assert not manifest.done("a/0") and not manifest.done(COMPLETE) and list(manifest.units()) == ["b"]
    assert (tmp_path / "units/a/0/bytes").is_file()
    manifest.withdraw("a/0")


def test_a_discarded_unit_loses_its_marker_before_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = _unit(tmp_path)
    _commit(manifest, "b")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            manifest.discard("a/0")
    assert not manifest.done("a/0") and (tmp_path / "units/a/0/bytes").is_file()
    manifest.discard("a/0")
    assert not (tmp_path / "units/a/0").exists() and list(manifest.units()) == ["b"] and manifest.done("b")


def _arrays(tmp_path: Path, *, stacked: bool, folder_form: bool = False) -> Manifest:
    manifest = Manifest("stage", tmp_path)
    written = {f"rows:{i}": torch.full((2, 3 + i % 2), float(i + 1)).bfloat16() for i in range(5)}
    folder = manifest.open_unit("u")
    (tensors.write_stacked if stacked else tensors.write)(folder, written, {"start": 3})
    if folder_form:
        unpack(folder)
    (folder / "notes.json").write_bytes(b"{}")
    manifest.commit("u")
    return manifest


PACK = "units/u/tensors.zarr.zip"


def _spoil(path: Path, place: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def _place(tmp_path: Path, value: float) -> int:
    """Where the numbers of the tensor of this value lie."""
    return (tmp_path / PACK).read_bytes().index(torch.full((6,), value).bfloat16().view(torch.uint8).numpy().tobytes())


def test_of_stacked_tensors_only_those_read_are_hashed(tmp_path: Path) -> None:
    manifest = _arrays(tmp_path, stacked=True)
    _spoil(tmp_path / PACK, _place(tmp_path, 3.0) + 5)
    manifest.verify("u", tensors=["rows:0", "rows:4", "rows:1"])
    for once in (False, True):
        for names in (["rows:2"], ["rows:0", "rows:2"], ["rows:9"]):
            with pytest.raises(DamagedUnit, match=r"tensors\.zarr\.zip does not have the digest"):
                manifest.verify("u", tensors=names, once=once)
        with pytest.raises(DamagedUnit, match="digest"):
            manifest.verify("u", once=once)


def test_a_stacked_tensor_is_hashed_once_as_long_as_its_file_stays(tmp_path: Path) -> None:
    manifest = _arrays(tmp_path, stacked=True)
    manifest.verify("u", tensors=["rows:2"], once=True)
    stat = (tmp_path / PACK).stat()
    with (tmp_path / PACK).open("r+b") as file:
        file.seek(_place(tmp_path, 3.0))
        file.write(b"\0")
    os.utime(tmp_path / PACK, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    manifest.verify("u", tensors=["rows:2"], once=True)
    os.utime(tmp_path / PACK, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(DamagedUnit, match="digest"):
        manifest.verify("u", tensors=["rows:2"], once=True)


@pytest.mark.parametrize("place", ["first", "between", "last"])
def test_what_leads_to_the_tensors_is_always_hashed(place: str, tmp_path: Path) -> None:
    """A description, a header before a tensor's numbers, and the list at the end."""
    manifest = _arrays(tmp_path, stacked=True)
    size = (tmp_path / PACK).stat().st_size
    _spoil(tmp_path / PACK, {"first": 70, "between": _place(tmp_path, 3.0) - 1, "last": size - 1}[place])
    with pytest.raises(DamagedUnit, match="digest"):
        manifest.verify("u", tensors=["rows:0"])


@pytest.mark.parametrize("name", ["parts.json", "notes.json"])
def test_files_beside_the_tensors_are_always_hashed(name: str, tmp_path: Path) -> None:
    manifest = _arrays(tmp_path, stacked=True)
    _spoil(tmp_path / "units/u" / name)
    with pytest.raises(DamagedUnit, match=name):
        manifest.verify("u", tensors=["rows:0"])
    _spoil(tmp_path / "units/u" / name)
    manifest.verify("u", tensors=["rows:0"])


def test_tensors_without_digests_of_their_own_are_hashed_together(tmp_path: Path) -> None:
    manifest = _arrays(tmp_path, stacked=False)
    manifest.verify("u", tensors=["rows:0"])
    _spoil(tmp_path / PACK, _place(tmp_path, 3.0))
    with pytest.raises(DamagedUnit, match="digest"):
        manifest.verify("u", tensors=["rows:0"])


@pytest.mark.parametrize(("stacked", "chunk"), [(True, "stack0/c/1/0/0"), (False, "rows:2/c/0/0")])
def test_of_tensors_in_a_folder_only_those_read_are_hashed(stacked: bool, chunk: str, tmp_path: Path) -> None:
    """As version 0.1 wrote them."""
    manifest = _arrays(tmp_path, stacked=stacked, folder_form=True)
    folder = tmp_path / "units/u/tensors.zarr"
    assert manifest.verify("u").files.keys() > {"tensors.zarr/zarr.json", f"tensors.zarr/{chunk}"}
    _spoil(folder / chunk)
    manifest.verify("u", tensors=["rows:0", "rows:4"])
    with pytest.raises(DamagedUnit, match="digest"):
        manifest.verify("u", tensors=["rows:0", "rows:2"])
    _spoil(folder / "zarr.json")
    with pytest.raises(DamagedUnit, match=r"zarr\.json"):
        manifest.verify("u", tensors=["rows:0"])


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
    _commit(manifest, "a/0", {"x": 1}, one=b"1", two=b"22")
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
        _commit(manifest, "a/0", one=b"1")
    assert store.contents() == {} and not manifest.done("a/0") and not (manifest.folder / "markers").exists()


def test_another_machine_reads_what_the_first_one_uploaded(tmp_path: Path, store: RecordingStore) -> None:
    first, other = _there(store, tmp_path / "one"), _there(store, tmp_path / "two")
    for unit in ("a/0", "a/1"):
        _commit(first, unit, {"of": unit}, one=b"1", two=b"22")
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
    _commit(other, "a/0", one=b"1")
    _remote(manifest).refresh()
    assert store.requests("find")[-1] == ["/run"] and _remote(manifest).is_current
    assert manifest.missing(["a/2", "a/0", "a/1"]) == ["a/2", "a/1"]
    assert len(store.requests("find")) == 1 and not _remote(manifest).is_current
    _commit(other, "a/1", one=b"1")
    assert manifest.missing(["a/2", "a/0", "a/1"]) == ["a/2"]
    assert store.requests("find")[1:] == [["/run/capture/ab/markers"]]


def test_bytes_that_differ_in_the_mirror_are_downloaded_again(tmp_path: Path, store: RecordingStore) -> None:
    manifest = _there(store, tmp_path / "here")
    _commit(manifest, "a/0", one=b"hello", two=b"kept")
    (manifest.unit_folder("a/0") / "one").write_bytes(b"jello")
    manifest.verify("a/0")
    assert (manifest.unit_folder("a/0") / "one").read_bytes() == b"hello"
    assert store.requests("get") == [["/run/capture/ab/units/a/0/one"]]


@pytest.mark.parametrize(("data", "words"), [(b"jello", "digest"), (b"hello!", "has 6 bytes, its marker says 5")])
def test_bytes_that_differ_in_the_store_are_not_served(
    data: bytes, words: str, tmp_path: Path, store: RecordingStore
) -> None:
    _commit(_there(store, tmp_path / "one"), "a/0", one=b"hello")
    store.pipe_file("/run/capture/ab/units/a/0/one", data)
    with pytest.raises(DamagedUnit, match=words):
        _there(store, tmp_path / "two").verify("a/0")
    store.rm("/run/capture/ab/units/a/0/one")
    with pytest.raises(DamagedUnit, match="is missing"):
        _there(store, tmp_path / "two").verify("a/0")


def test_withdrawing_removes_the_marks_from_the_store(tmp_path: Path, store: RecordingStore) -> None:
    manifest, other = _there(store, tmp_path / "one"), _there(store, tmp_path / "two")
    _commit(manifest, "a/0", one=b"1")
    _commit(manifest, COMPLETE)
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
    _commit(manifest, "a/0", one=b"1", two=b"22")
    _commit(manifest, "a/01", one=b"1")
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
    _commit(manifest, "a/0")
    assert list(store.contents()) == ["/run/capture/ab/markers/a/0.json"] and manifest.failures() == {}


def test_a_unit_is_looked_at_with_one_call_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, seen = Manifest("capture", tmp_path), list[str]()
    _commit(manifest, "a/0", a=b"1", b=b"22", c=b"333")
    stat, opened = os.stat, os.open

    def counted_stat(path: object, **options: object) -> os.stat_result:
        seen.append(f"stat {os.path.basename(os.fspath(path))}")  # type: ignore[call-overload]
        return stat(path, **options)  # type: ignore[call-overload,no-any-return]

    def counted_open(path: str, flags: int) -> int:
        seen.append(f"open {os.path.basename(path)}")
        return opened(path, flags)

    monkeypatch.setattr(os, "stat", counted_stat)
    monkeypatch.setattr(os, "open", counted_open)
    assert manifest.done("a/0")
    assert seen == ["stat 0.json", "open 0.json", "stat a", "stat b", "stat c"]
    seen.clear()
    assert manifest.done("a/0")
    assert seen == ["stat 0.json", "stat a", "stat b", "stat c"]


@pytest.mark.parametrize("there", ["nothing", "a folder", "a file in place of its folder"])
def test_what_is_no_file_is_missing(there: str, tmp_path: Path) -> None:
    manifest = Manifest("capture", tmp_path)
    _commit(manifest, "a", bytes=b"hello")
    assert manifest.done("a")
    folder = tmp_path / "units" / "a"
    (folder / "bytes").unlink()
    if there == "a folder":
        (folder / "bytes").mkdir()
    if there == "a file in place of its folder":
        folder.rmdir()
        folder.touch()
    assert not manifest.done("a")


def test_readers_hash_a_file_once_a_process_and_again_if_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest("capture", tmp_path / "store")
    (manifest.open_unit("u") / "one").write_bytes(b"x" * 100)
    manifest.commit("u")
    hashed: list[str] = []
    whole = fingerprint.file_digest
    monkeypatch.setattr(fingerprint, "file_digest", lambda path: (hashed.append(path.name), whole(path))[1])
    for _ in range(3):
        manifest.verify("u", once=True)
    assert hashed == ["one"]
    file = manifest.unit_folder("u") / "one"
    file.write_bytes(b"y" * 100)
    os.utime(file, ns=(1, 1))
    with pytest.raises(DamagedUnit):
        manifest.verify("u", once=True)


def test_a_pack_that_is_altered_in_the_mirror_is_downloaded_again(tmp_path: Path, store: RecordingStore) -> None:
    written = {f"rows:{i}": torch.full((2, 3), float(i + 1)) for i in range(3)}
    here, elsewhere = _there(store, tmp_path / "here"), _there(store, tmp_path / "elsewhere")
    tensors.write_stacked(here.open_unit("u"), written)
    here.commit("u")
    path = elsewhere.unit_folder("u") / "tensors.zarr.zip"
    elsewhere.verify("u", tensors=["rows:1"], once=True)
    whole = path.read_bytes()
    _spoil(path, whole.index(written["rows:1"].numpy().tobytes()))
    elsewhere.verify("u", tensors=["rows:1"], once=True)
    assert path.read_bytes() == whole and torch.equal(
        tensors.read(path.parent, ["rows:1"])["rows:1"], written["rows:1"]
    )
