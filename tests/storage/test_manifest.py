"""A unit is done when it has a valid marker and its bytes match it. Digests are computed here with hashlib."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path

import pytest

from adatsq_pipe.storage import fingerprint
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.manifest import COMPLETE, Manifest
from tests.support import made_units as made


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
        "files": {"bytes": [5, made.sha(b"hello")], "deep/more": [1000, made.sha(b"x" * 1000)]},
        "value": {"x": [1, 0.5]},
        "seconds": {"total": 2.0},
        "host": socket.gethostname(),
    }
    assert own == made.sha(made.plain(body))
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
    manifest = made.unit(tmp_path)
    by_hand = made.sha(made.plain({"files": {"bytes": made.sha(b"hello")}, "value": {"x": 1}}))
    assert manifest.read("a/0").digest == by_hand
    manifest.withdraw("a/0")
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"hello")
    again = manifest.commit("a/0", value={"x": 1}, seconds={"total": 9.0}, micro_batch={"from": 2, "to": 1}, peak=5)
    assert again.digest == by_hand and again.seconds == {"total": 9.0}


def test_a_committed_unit_is_done_and_listed(tmp_path: Path) -> None:
    manifest = made.unit(tmp_path)
    assert manifest.done("a/0") and manifest.verify("a/0").value == {"x": 1} and list(manifest.units()) == ["a/0"]
    with pytest.raises(KeyError, match="unit 'a/1' of stage capture is not done"):
        manifest.read("a/1")


def test_the_marker_is_moved_into_place_after_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, seen = os.replace, []

    def recorded(source: str, target: str) -> None:
        replace(source, target)
        seen.append((str(Path(target).relative_to(tmp_path)), (tmp_path / "units/a/0/bytes").is_file()))

    monkeypatch.setattr("os.replace", recorded)
    made.unit(tmp_path)
    assert seen == [("units/a/0", True), ("markers/a/0.json", True)]


@pytest.mark.parametrize("damage", ["truncate", "grow", "alter", "remove", "marker", "marker field", "marker unit"])
def test_damage_is_never_served(damage: str, tmp_path: Path) -> None:
    manifest = made.unit(tmp_path)
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
        made.commit(manifest, "a/1", bytes=b"hello")
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
    manifest = made.unit(tmp_path)
    path = tmp_path / "units/a/0/bytes"
    path.write_bytes(data) if data else path.unlink()
    with pytest.raises(DamagedUnit, match=words) as caught:
        manifest.verify("a/0")
    assert str(path) in caught.value.what and (caught.value.stage, caught.value.unit) == ("capture", "a/0")


def test_a_marker_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    manifest = made.unit(tmp_path)
    assert manifest.read("a/0").value == {"x": 1}
    manifest.withdraw("a/0")
    made.commit(manifest, "a/0", {"x": 2}, bytes=b"hello")
    assert manifest.read("a/0").value == {"x": 2}


def test_a_second_try_at_a_finished_unit_changes_nothing(tmp_path: Path) -> None:
    manifest = made.unit(tmp_path)
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"other")
    second = manifest.commit("a/0", value={"x": 3})
    assert second == manifest.verify("a/0") and second.value == {"x": 1}
    assert (tmp_path / "units/a/0/bytes").read_bytes() == b"hello" and not (tmp_path / "attempts").exists()


def test_a_damaged_unit_is_replaced(tmp_path: Path) -> None:
    manifest = made.unit(tmp_path)
    (tmp_path / "units/a/0/bytes").write_bytes(b"hell")
    (tmp_path / "units/a/0/more").write_bytes(b"x")
    made.commit(manifest, "a/0", {"x": 4}, bytes=b"hello")
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
    made.commit(manifest, "a/0", bytes=b"hello")
    assert manifest.failures() == {} and manifest.done("a/0") and not (tmp_path / "failures/a/0.json").exists()


def test_sweep_removes_what_killed_processes_left(tmp_path: Path) -> None:
    manifest = made.unit(tmp_path)
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
    made.commit(manifest, "a/0", bytes=b"hello")
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
    assert made.unit(tmp_path).verify("a/0").value == {"x": 1} and not refusals


def test_a_move_that_cannot_succeed_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"now": errno.ENOSPC}

    def refused(source: str, target: str) -> None:
        raise OSError(codes["now"], "refused")

    monkeypatch.setattr("os.replace", refused)
    with pytest.raises(OSError, match="refused"):
        made.unit(tmp_path)
    codes["now"] = errno.ENOTEMPTY
    with pytest.raises(FileExistsError, match="another process"):
        made.unit(tmp_path)
    assert not (tmp_path / "markers").exists()


def test_units_are_listed_in_order_without_the_stages_own_mark(tmp_path: Path) -> None:
    manifest = Manifest("capture", tmp_path)
    for unit in ("b/1", "a.json.x", "b-0", "a/9"):
        made.commit(manifest, unit)
    manifest.open_unit(COMPLETE)
    manifest.commit(COMPLETE, value=["a/9", "b/1"])
    (tmp_path / "markers" / "notes.txt").touch()
    (tmp_path / "markers" / ".partial-x.json").touch()
    assert list(manifest.units()) == list(manifest.markers()) == ["a.json.x", "a/9", "b-0", "b/1"]
    assert manifest.read(COMPLETE).value == ["a/9", "b/1"] and manifest.done(COMPLETE)
    assert manifest.missing(["z", "a/9", "c"]) == ["z", "c"] and manifest.local_folder("a/9") == tmp_path / "units/a/9"


def test_a_withdrawn_unit_is_neither_done_nor_listed_and_the_stage_is_not_complete(tmp_path: Path) -> None:
    manifest = made.unit(tmp_path)
    made.commit(manifest, "b")
    manifest.open_unit(COMPLETE)
    manifest.commit(COMPLETE, value=["a/0", "b"])
    manifest.withdraw("a/0")
    assert not manifest.done("a/0") and not manifest.done(COMPLETE) and list(manifest.units()) == ["b"]
    assert (tmp_path / "units/a/0/bytes").is_file()
    manifest.withdraw("a/0")


def test_a_discarded_unit_loses_its_marker_before_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = made.unit(tmp_path)
    made.commit(manifest, "b")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            manifest.discard("a/0")
    assert not manifest.done("a/0") and (tmp_path / "units/a/0/bytes").is_file()
    manifest.discard("a/0")
    assert not (tmp_path / "units/a/0").exists() and list(manifest.units()) == ["b"] and manifest.done("b")


def test_a_unit_is_looked_at_with_one_call_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, seen = Manifest("capture", tmp_path), list[str]()
    made.commit(manifest, "a/0", a=b"1", b=b"22", c=b"333")
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
    made.commit(manifest, "a", bytes=b"hello")
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
