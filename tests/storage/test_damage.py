"""Notes of damaged units: kept until the unit is withdrawn, in a folder and in a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.remote import open_remote
from adatsq_pipe.storage.rundir import RunDir


@pytest.fixture(params=["a folder", "a store"])
def manifest(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manifest]:
    """A stage with the finished units `a/0` and `b`."""
    monkeypatch.setenv("ADATSQ_PIPE_CACHE", str(tmp_path / "cache"))
    open_remote.cache_clear()
    fsspec.filesystem("memory").store.clear()
    run = RunDir.open(str(tmp_path / "run") if request.param == "a folder" else f"memory://{tmp_path.name}/run")
    made = run.manifest("solve", "f" * 64)
    for unit in ("a/0", "b"):
        (made.open_unit(unit) / "bytes").write_text(unit)
        made.commit(unit)
    yield made
    open_remote.cache_clear()


def test_a_note_names_its_unit_until_the_unit_is_withdrawn(manifest: Manifest) -> None:
    assert manifest.notes.all() == {}
    manifest.notes.add("a/0", "a byte is wrong")
    manifest.notes.add("b", "it is empty")
    manifest.notes.remove("nothing")
    assert manifest.notes.all() == {"a/0": "a byte is wrong", "b": "it is empty"}
    manifest.withdraw("a/0")
    assert manifest.notes.all() == {"b": "it is empty"} and list(manifest.units()) == ["b"]
    assert not manifest.done("a/0") and manifest.done("b")


def test_without_a_note_there_is_no_folder_of_notes(manifest: Manifest) -> None:
    manifest.notes.add("a/0", "a byte is wrong")
    manifest.notes.add("b", "it is empty")
    manifest.notes.remove("a/0")
    assert [path.name for path in (manifest.folder / "damage").rglob("*")] == ["b.json"]
    manifest.notes.remove("b")
    assert not (manifest.folder / "damage").exists() and manifest.folder.is_dir()


def test_a_note_that_cannot_be_read_still_names_its_unit(manifest: Manifest) -> None:
    manifest.notes.add("b", "it is empty")
    (manifest.folder / "damage" / "b.json").write_text('["torn"')
    if manifest.remote is not None:
        manifest.remote.upload(manifest._names(manifest.folder / "damage" / "b.json"))
    assert list(manifest.notes.all()) == ["b"]
