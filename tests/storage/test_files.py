"""Files appear whole or not at all, links are replaced in one step, clones leave their original untouched."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from adatsq_pipe.storage.files import (
    clone_tree,
    copy_files,
    is_safe_relative,
    read_json_object,
    read_text,
    symlink_atomically,
    write_bytes,
    write_text,
    write_with,
)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_written_beside_its_place_and_then_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace = tmp_path / "a" / "b" / "f", os.replace
    moves: list[tuple[bytes, Path]] = []

    def recorded(source: str, target: Path) -> None:
        moves.append((Path(source).read_bytes(), Path(source).parent))
        assert target == path and Path(source).name.startswith("."), "listings leave hidden names out"
        replace(source, target)

    monkeypatch.setattr("os.replace", recorded)
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert moves == [(b"one", path.parent), (b"two", path.parent)]
    assert path.read_bytes() == b"two" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_written_file_has_the_mode_that_any_new_file_has(umask: int, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    (tmp_path / "source").chmod(0o400)
    old = os.umask(umask)
    try:
        write_bytes(tmp_path / "f", b"x")
        write_with(tmp_path / "g", lambda path: save_file({"a": np.ones(1)}, path))
        copy_files(tmp_path, tmp_path / "copy", ["source"])
        write_bytes(tmp_path / "f", b"again")
    finally:
        os.umask(old)
    for name in ("f", "g", "copy/source"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask, name


def test_text_is_written_in_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "é\n")
    assert (tmp_path / "f").read_bytes() == b"\xc3\xa9\n"


@pytest.mark.parametrize("name", ["a", "a/b", "a..b/c..", "..a", "a/.hidden", "rows:0"])
def test_a_name_that_stays_inside(name: str) -> None:
    assert is_safe_relative(name)


@pytest.mark.parametrize("name", ["", "/a", "..", "../a", "a/../b", "a/..", "a\\b", "a\0b"])
def test_a_name_that_leads_out(name: str) -> None:
    assert not is_safe_relative(name)


def test_a_link_is_relative_and_follows_its_last_target(tmp_path: Path) -> None:
    for name in ("runs/one", "runs/two"):
        (tmp_path / name).mkdir(parents=True)
    link = tmp_path / "model"
    (tmp_path / ".model.partial").symlink_to("nowhere")
    symlink_atomically(link, tmp_path / "runs/one")
    assert os.readlink(link) == "runs/one"
    symlink_atomically(link, tmp_path / "runs/two")
    assert os.readlink(link) == "runs/two" and sorted(os.listdir(tmp_path)) == ["model", "runs"]


def test_a_link_never_vanishes(tmp_path: Path, full_disk: None) -> None:
    (tmp_path / "model").symlink_to("one")
    with pytest.raises(OSError, match="No space"):
        symlink_atomically(tmp_path / "model", tmp_path / "two")
    assert os.readlink(tmp_path / "model") == "one"


def test_a_folder_in_the_place_of_a_link_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match="not a link made by this program"):
        symlink_atomically(tmp_path / "model", tmp_path / "two")
    assert (tmp_path / "model").is_dir() and not (tmp_path / "model").is_symlink()


def _tree(folder: Path) -> Path:
    (folder / "vae" / "empty").mkdir(parents=True)
    (folder / "small").write_bytes(b"s")
    (folder / "edge").write_bytes(bytes(2**20))
    (folder / "vae" / "large").write_bytes(bytes(2**20 + 1))
    return folder


def test_a_clone_copies_small_files_and_shares_large_ones(tmp_path: Path) -> None:
    source, target = _tree(tmp_path / "source"), tmp_path / "target"
    (tmp_path / "target.unfinished" / "torn").mkdir(parents=True)
    (target / "of-before").mkdir(parents=True)
    clone_tree(source, target, {"vae/large": b"mine"})
    assert not (target / "torn").exists() and not (target / "of-before").exists()
    (target / "of-before").touch()
    clone_tree(source, target, {"card/README.md": b"hello", "small": b"other"})
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*")) == [
        "card",
        "card/README.md",
        "edge",
        "small",
        "vae",
        "vae/empty",
        "vae/large",
    ]
    assert (target / "card/README.md").read_bytes() == b"hello" and (target / "small").read_bytes() == b"other"
    assert (source / "small").read_bytes() == b"s" and (source / "vae/large").stat().st_size == 2**20 + 1
    assert (target / "vae/large").stat().st_ino == (source / "vae/large").stat().st_ino
    assert (target / "edge").stat().st_ino != (source / "edge").stat().st_ino
    assert (target / "edge").read_bytes() == bytes(2**20) and sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_a_file_added_to_a_clone_is_not_written_through_to_the_original(tmp_path: Path) -> None:
    source = _tree(tmp_path / "source")
    clone_tree(source, tmp_path / "target", {"vae/large": b"mine"})
    assert (tmp_path / "target/vae/large").read_bytes() == b"mine"
    assert (source / "vae/large").read_bytes() == bytes(2**20 + 1)


def test_a_clone_copies_where_it_cannot_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refused)
    clone_tree(_tree(tmp_path / "source"), tmp_path / "target", {})
    assert (tmp_path / "target/vae/large").read_bytes() == bytes(2**20 + 1)


def test_a_clone_that_fails_leaves_the_old_one(tmp_path: Path, full_disk: None) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").touch()
    with pytest.raises(OSError, match="No space"):
        clone_tree(_tree(tmp_path / "source"), tmp_path / "target", {"new": b"x"})
    assert os.listdir(tmp_path / "target") == ["old"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"[1]", "it holds a list in place of an object"),
        (b'"a"', "it holds a text in place of an object"),
        (b"5.5", "it holds a number in place of an object"),
        (b"null", "it holds null in place of an object"),
        (b"true", "it holds true in place of an object"),
        (b'{"a":' * 100_000, "it is nested too deeply"),
    ],
)
def test_a_file_that_holds_no_json_object_says_what_it_holds(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read_json_object(tmp_path / "a.json")


def test_text_is_utf_8_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    for data in ("Zürich 東京".encode(), "Zürich 東京".encode("utf-8-sig")):
        (tmp_path / "a.txt").write_bytes(data)
        assert read_text(tmp_path / "a.txt") == "Zürich 東京"
