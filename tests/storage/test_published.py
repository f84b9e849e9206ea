"""A published model: its marker vouches for every file of the folder and of the report."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adatsq_pipe.storage.published import PublishedModel

Damage = Callable[[Path], object]
EMPTIED: Damage = lambda path: path.write_bytes(b"")  # noqa: E731
CUT: Damage = lambda path: path.write_bytes(path.read_bytes()[:-1])  # noqa: E731
FLIPPED: Damage = lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])  # noqa: E731
REMOVED: Damage = lambda path: path.unlink()  # noqa: E731


@pytest.fixture
def model(tmp_path: Path) -> PublishedModel:
    """A model of three files, and a report of one file and another that is none of ours."""
    folder = tmp_path / "published" / "a" / "b"
    (folder / "transformer").mkdir(parents=True)
    for name in ("README.md", "model_index.json", "transformer/weights.safetensors"):
        (folder / name).write_text(f"this is {name}")
    (tmp_path / "report").mkdir()
    for name in ("summary.json", "notes.txt"):
        (tmp_path / "report" / name).write_text(name)
    made = PublishedModel(folder)
    made.vouch(tmp_path / "report", ["summary.json", "policy.png"])
    return made


@pytest.mark.parametrize("damage", [EMPTIED, CUT, FLIPPED, REMOVED], ids=["emptied", "cut", "flipped", "removed"])
@pytest.mark.parametrize("name", ["README.md", "model_index.json", "transformer/weights.safetensors"])
def test_any_damage_to_any_file_is_named(model: PublishedModel, name: str, damage: Damage) -> None:
    assert model.damage() == model.damage(thorough=True) == ""
    damage(model.folder / name)
    for thorough in (False, True):
        assert model.damage(thorough=thorough).startswith(f"{model.folder / name} ")


@pytest.mark.parametrize("damage", [EMPTIED, CUT, FLIPPED, REMOVED], ids=["emptied", "cut", "flipped", "removed"])
def test_damage_to_the_report_is_named(model: PublishedModel, damage: Damage, tmp_path: Path) -> None:
    (tmp_path / "report" / "notes.txt").write_text("none of the report's files")
    assert model.damage(report=tmp_path / "report") == ""
    damage(tmp_path / "report" / "summary.json")
    assert model.damage(report=tmp_path / "report").startswith(f"{tmp_path / 'report' / 'summary.json'} ")
    assert model.damage() == ""


def test_bytes_that_changed_without_a_new_date_are_found_by_hashing_and_from_then_on(model: PublishedModel) -> None:
    path = model.folder / "README.md"
    before = path.stat()
    FLIPPED(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert model.damage() == "" and "does not have the digest" in model.damage(thorough=True)
    model.doubt()
    assert "does not have the digest" in model.damage()


def test_a_marker_that_is_not_as_it_was_written_vouches_for_nothing(model: PublishedModel, tmp_path: Path) -> None:
    marker = model.folder.with_name("b.json")
    marker.write_text(marker.read_text()[:-5])
    assert "is not as it was written" in model.damage() and model.vouched
    marker.unlink()
    assert not model.vouched and model.damage() == "", "a run that was killed before the marker has damaged nothing"
