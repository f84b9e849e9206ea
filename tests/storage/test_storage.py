"""Fingerprints refuse to guess, markers are written last, bf16 survives Zarr, locks name their holder."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
import torch

from adatsq_pipe.storage import arrays, tables, tensors
from adatsq_pipe.storage.errors import DamagedUnit, StorageError
from adatsq_pipe.storage.files import write_bytes
from adatsq_pipe.storage.fingerprint import (
    canonical,
    differences,
    digest,
    digest_of_read,
    files_below,
    folder_digest,
    names_below,
)
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.remote import Remote
from adatsq_pipe.storage.rundir import RunDir


def test_equal_values_have_equal_digests() -> None:
    assert digest({"b": (1, 2.5), "a": None}) == digest({"a": None, "b": [1, 2.5]})
    assert digest({"a": 1}) != digest({"a": 1.0}) != digest({"a": "1"}) != digest({"a": True})


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), float("inf"), {1: "a"}, object(), Path("x"), b"x"])
def test_what_has_no_identity_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"value\.key"):
        canonical({"key": value})  # type: ignore[dict-item]


def test_differences_name_fields() -> None:
    found = differences({"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"x": 1, "y": 3}, "c": 1})
    assert found == [("a.y", 2, 3), ("b", 1, None), ("c", None, 1)]


def test_a_folder_is_its_contents(tmp_path: Path) -> None:
    model, memory = tmp_path / "model", tmp_path / "memory.json"
    (model / "vae").mkdir(parents=True)
    (model / "vae" / "w").write_bytes(b"one")
    first = folder_digest(model, memory)
    assert folder_digest(model, memory) == first == folder_digest(model, tmp_path / "other.json")
    (model / "vae" / "w").write_bytes(b"two")
    assert folder_digest(model, memory) != first
    memory.write_text("torn{")
    assert folder_digest(model, memory) != first


def _unit(tmp_path: Path) -> Manifest:
    manifest = Manifest("capture", tmp_path)
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"hello")
    assert not manifest.done("a/0")
    manifest.commit("a/0", value={"x": 1}, seconds={"total": 2.0})
    return manifest


def test_a_marker_vouches(tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    assert manifest.done("a/0") and manifest.verify("a/0").value == {"x": 1} and list(manifest.units()) == ["a/0"]
    with pytest.raises(KeyError):
        manifest.read("a/1")


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove", "marker", "marker field"])
def test_damage_is_never_served(damage: str, tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    path, marker = tmp_path / "units/a/0/bytes", tmp_path / "markers/a/0.json"
    if damage == "truncate":
        path.write_bytes(b"hell")
    elif damage == "alter":
        path.write_bytes(b"jello")
    elif damage == "remove":
        path.unlink()
    elif damage == "marker":
        marker.write_text(marker.read_text()[:30])
    else:
        marker.write_text(marker.read_text().replace('"x": 1', '"x": 2'))
    with pytest.raises(DamagedUnit, match="a/0"):
        manifest.verify("a/0")
    assert manifest.done("a/0") is (damage == "alter")


@pytest.mark.parametrize("name", ["../../run.json", "/etc/hostname", "a/../../b", "..", "a\\..\\b"])
def test_a_marker_whose_files_lead_out_is_not_believed(name: str, tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    path = tmp_path / "markers/a/0.json"
    body = json.loads(path.read_text())
    del body["self"]
    body["files"] = {name: [1, "0" * 64]}
    path.write_text(json.dumps({**body, "self": digest(body)}))
    with pytest.raises(DamagedUnit, match="not readable as written"):
        manifest.verify("a/0")


def test_a_store_whose_names_lead_out_is_refused(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pipe_file("memory://run/run.json", b"{}")
    remote = Remote(url="memory://run", local=tmp_path / "mirror", files=files, base="/run")
    remote.look()
    assert remote.fetch(["run.json"]) == [] and (tmp_path / "mirror/run.json").read_bytes() == b"{}"
    files.store["/run/../../escaped"] = files.store["/run/run.json"]
    with pytest.raises(StorageError, match="leads out of it"):
        remote.look()
    assert not (tmp_path.parent / "escaped").exists()


def test_a_second_try_at_a_finished_unit_changes_nothing(tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"other")
    assert (
        manifest.verify("a/0") == manifest.commit("a/0", value={"x": 3}) and not manifest.attempt_folder("a/0").exists()
    )


def test_a_damaged_unit_is_replaced(tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    (tmp_path / "units/a/0/bytes").write_bytes(b"hell")
    (tmp_path / "units/a/0/more").write_bytes(b"x")
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"hello")
    manifest.commit("a/0", value={"x": 1})
    assert manifest.verify("a/0").value == {"x": 1} and not (tmp_path / "units/a/0/more").exists()


def test_why_a_unit_failed_is_kept_until_it_is_done(tmp_path: Path) -> None:
    manifest = Manifest("capture", tmp_path)
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"hel")
    manifest.fail("a/0", "Traceback ...\nValueError: no")
    assert manifest.failures() == {"a/0": "Traceback ...\nValueError: no"} and not manifest.done("a/0")
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"hello")
    manifest.commit("a/0")
    assert manifest.failures() == {} and manifest.done("a/0")


def test_what_killed_tries_left_is_swept(tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    manifest.open_unit("a/1")
    assert manifest.attempt_folder("a/1").is_dir() and not manifest.attempt_folder("a/0").exists()
    manifest.sweep()
    assert not (tmp_path / "attempts").exists() and manifest.done("a/0") and list(manifest.units()) == ["a/0"]


def test_times_do_not_enter_a_units_digest(tmp_path: Path) -> None:
    manifest = _unit(tmp_path)
    before = manifest.read("a/0").digest
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"hello")
    assert manifest.commit("a/0", value={"x": 1}, seconds={"total": 9.0}).digest == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.float64])
def test_tensors_come_back_as_they_were(dtype: torch.dtype, tmp_path: Path) -> None:
    x = (torch.randn(3, 5) * 3).to(dtype)
    tensors.write(tmp_path, {"a.b:c": x, "zeros": torch.zeros(4)}, {"n": [1, 2]})
    back = tensors.read(tmp_path)
    assert back["a.b:c"].dtype == dtype and torch.equal(back["a.b:c"].float(), x.float())
    assert torch.equal(back["zeros"], torch.zeros(4)) and arrays.attributes(tmp_path)["n"] == [1, 2]
    assert list((tmp_path / "tensors.zarr" / "zeros").rglob("c/*")), "a chunk of zeros must be written too"


def _stacked(tmp_path: Path) -> tuple[Manifest, dict[str, torch.Tensor]]:
    manifest = Manifest("stage", tmp_path)
    written = {f"rows:{i}": torch.full((2, 3 + i % 2), float(i)).bfloat16() for i in range(5)}
    tensors.write_stacked(manifest.open_unit("u"), written, {"start": 3})
    manifest.commit("u")
    return manifest, written


def test_stacked_tensors_come_back_by_name(tmp_path: Path) -> None:
    manifest, written = _stacked(tmp_path)
    folder = manifest.unit_folder("u")
    for back in (tensors.read(folder), tensors.read(folder, list(written))):
        assert back.keys() == written.keys() and all(torch.equal(back[name], written[name]) for name in written)
    assert arrays.attributes(folder)["start"] == 3 and len(list((folder / "tensors.zarr").glob("stack*"))) == 2


def test_of_stacked_tensors_only_those_read_are_hashed(tmp_path: Path) -> None:
    manifest, _ = _stacked(tmp_path)
    chunk = next(p for p in (tmp_path / "units/u/tensors.zarr/stack0/c/1").rglob("*") if p.is_file())
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    manifest.verify("u", tensors=["rows:0", "rows:4"])
    with pytest.raises(DamagedUnit, match="digest"):
        manifest.verify("u", tensors=["rows:2"])
    (tmp_path / "units/u/tensors.zarr/zarr.json").write_text("{")
    with pytest.raises(DamagedUnit):
        manifest.verify("u", tensors=["rows:0"])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_bytes(path, b"old")

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_tables_come_back(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": [1.5], "c": None}, {"a": 2, "b": [], "c": "x"}]
    tables.write(tmp_path / "t.parquet", rows)
    assert tables.read(tmp_path / "t.parquet") == rows


def test_a_torn_line_of_the_log_is_passed_over(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.log({"stage": "capture", "wall": 1.5})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"stage": "fis\n')
    run.log({"stage": "solve", "wall": 2.0})
    assert [entry["stage"] for entry in run.logged()] == ["capture", "solve"]


def test_a_second_lock_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    with run.lock(), pytest.raises(StorageError, match="in use by process"), RunDir(run.path).lock():
        pass
    with run.lock():
        assert json.loads((run.path / "run.json").read_text())["format"] == 1


def test_a_digest_of_what_was_read_is_that_of_what_was_written() -> None:
    value: dict[str, object] = {"b": [1, 0.1, None, True], "a": {"é": "\n", "z": 1e-300}}
    assert digest_of_read(json.loads(json.dumps(value))) == digest(value)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        digest_of_read(json.loads('{"x": NaN}'))


def test_names_below_are_the_files_below(tmp_path: Path) -> None:
    for name in ("b/1.json", "b/c/2.json", "a.json", ".hidden/3", "b/.partial-1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names_below(tmp_path) == ["a.json", "b/1.json", "b/c/2.json"]
    assert files_below(tmp_path) == [tmp_path / name for name in names_below(tmp_path)]
    assert names_below(tmp_path / "nowhere") == []
