"""Digests of values and folders, against hashlib on texts written by hand."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from adatsq_pipe.storage import fingerprint
from adatsq_pipe.storage.fingerprint import (
    canonical,
    differences,
    digest,
    digest_of_json,
    file_digest,
    folder_digest,
    list_files,
    list_names,
)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_canonical_text_has_sorted_keys_no_spaces_and_only_ascii() -> None:
    value = {"b": (1, 2.5, -0.0), "a": None, "é": [True, "x\n"], "c": {}}
    assert canonical(value) == '{"a":null,"b":[1,2.5,-0.0],"c":{},"\\u00e9":[true,"x\\n"]}'
    assert canonical(1e-7) == "1e-07" and canonical([]) == "[]"


def test_a_digest_is_the_sha256_of_the_canonical_text() -> None:
    assert digest({"b": (1, 2.5), "a": None}) == _sha(b'{"a":null,"b":[1,2.5]}')
    assert digest([]) == _sha(b"[]") and len(digest(None)) == 64


def test_values_of_other_types_have_other_digests() -> None:
    assert len({digest({"a": value}) for value in (1, 1.0, "1", True, None, [1], {"a": 1})}) == 7


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), float("inf"), {1: "a"}, object(), Path("x"), b"x"])
def test_what_has_no_identity_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"value\.key"):
        canonical({"key": value})  # type: ignore[dict-item]


def test_what_has_no_identity_is_named_by_its_place() -> None:
    with pytest.raises(TypeError, match=r"value\.a\[1\]\.b is a set"):
        canonical({"a": [0, {"b": set()}]})  # type: ignore[dict-item]


def test_a_digest_of_what_was_read_is_that_of_what_was_written() -> None:
    value: dict[str, object] = {"b": [1, 0.1, None, True], "a": {"é": "\n", "z": 1e-300}}
    by_hand = _sha(b'{"a":{"z":1e-300,"\\u00e9":"\\n"},"b":[1,0.1,null,true]}')
    assert digest_of_json(json.loads(json.dumps(value))) == digest(value) == by_hand  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        digest_of_json(json.loads('{"x": NaN}'))


def test_differences_name_fields() -> None:
    changes = differences({"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"x": 1, "y": 3}, "c": 1})
    assert changes == [("a.y", 2, 3), ("b", 1, None), ("c", None, 1)]


def test_differences_see_types_and_not_kinds_of_sequence() -> None:
    assert differences({"a": 1, "l": [1, 2]}, {"a": 1.0, "l": (1, 2)}) == [("a", 1, 1.0)]
    assert differences(1, 1) == [] and differences({"a": {"b": 1}}, {"a": 1}) == [("a", {"b": 1}, 1)]


def test_a_file_digest_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 3000
    (tmp_path / "f").write_bytes(data)
    assert file_digest(tmp_path / "f") == _sha(data)


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_names_below_are_the_files_below(tmp_path: Path) -> None:
    _touch(tmp_path, "b/1.json", "b/c/2.json", "a.json", ".hidden/3", "b/.partial-1")
    assert list_names(tmp_path) == ["a.json", "b/1.json", "b/c/2.json"]
    assert list_files(tmp_path) == [tmp_path / name for name in list_names(tmp_path)]
    assert list_names(tmp_path / "nowhere") == []


def test_names_below_stand_in_one_order_whatever_the_disk_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "z/2", "z/1", "y/3", "b", "a")
    walk = os.walk(tmp_path)

    def backwards(folder: Path, **options: bool) -> object:
        assert options == {"followlinks": True}, "models in a download cache are links"
        for root, folders, names in walk:
            folders.sort(reverse=True)
            yield root, folders, sorted(names, reverse=True)

    monkeypatch.setattr("os.walk", backwards)
    assert list_names(tmp_path) == ["a", "b", "y/3", "z/1", "z/2"]


def _model(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "vae").mkdir(parents=True)
    (model / "vae" / "w").write_bytes(b"one")
    (model / "index.json").write_bytes(b"{}")
    return model


def test_a_model_is_the_names_and_contents_of_its_files(tmp_path: Path) -> None:
    model, memory = _model(tmp_path), tmp_path / "memory.json"
    text = f'{{"index.json":"{_sha(b"{}")}","vae/w":"{_sha(b"one")}"}}'
    assert folder_digest(model, ["index.json", "vae/w"], memory) == _sha(text.encode())
    (model / "note.txt").write_text("not one of the names")
    assert folder_digest(model, ["index.json", "vae/w"], memory) == _sha(text.encode())
    (model / "vae" / "w").rename(model / "vae" / "v")
    names = ["index.json", "vae/v"]
    assert folder_digest(model, names, memory) == _sha(text.replace("vae/w", "vae/v").encode())
    for torn in ("torn{", "[]", "7", '{"files": [], "kept": {}}', '{"files": {"a": [1]}, "kept": {}}'):
        memory.write_text(torn)
        assert folder_digest(model, names, memory) == _sha(text.replace("vae/w", "vae/v").encode())
    (model / "vae" / "v").write_bytes(b"two")
    changed = text.replace("vae/w", "vae/v").replace(_sha(b"one"), _sha(b"two"))
    assert folder_digest(model, names, memory) == _sha(changed.encode())


def test_a_run_directory_of_an_older_version_keeps_the_digest_of_its_model(tmp_path: Path) -> None:
    """That version hashed every file of the folder: the digest in its fingerprints is of them all."""
    model, memory = _model(tmp_path), tmp_path / "memory.json"
    (model / "note.txt").write_bytes(b"hello")
    every, names = ("index.json", "note.txt", "vae/w"), ["index.json", "vae/w"]
    hashed = {name: _sha((model / name).read_bytes()) for name in every}
    stats = {name: (model / name).stat() for name in every}
    old = {str(model / n): [stats[n].st_size, stats[n].st_mtime_ns, hashed[n]] for n in every}
    memory.write_text(json.dumps(old))
    whole = _sha(json.dumps(hashed, separators=(",", ":"), sort_keys=True).encode())
    assert folder_digest(model, names, memory) == whole
    (model / "note.txt").write_bytes(b"changed")
    assert folder_digest(model, names, memory) == whole
    (model / "vae" / "w").write_bytes(b"other")
    text = f'{{"index.json":"{_sha(b"{}")}","vae/w":"{_sha(b"other")}"}}'
    assert folder_digest(model, names, memory) == _sha(text.encode())
    (model / "vae" / "w").write_bytes(b"one")
    assert folder_digest(model, names, memory) == whole, "the old model again: what was computed from it is"


def test_files_are_hashed_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = _model(tmp_path), tmp_path / "memory.json"
    hashed, names = list[str](), ["index.json", "vae/w"]

    def recorded(path: Path) -> str:
        hashed.append(path.name)
        return _sha(path.read_bytes())

    monkeypatch.setattr(fingerprint, "file_digest", recorded)
    first = folder_digest(model, names, memory)
    assert hashed == ["index.json", "w"]
    weights, written = model / "vae" / "w", memory.stat()
    stat = weights.stat()
    assert json.loads(memory.read_text())["files"][str(weights)] == [3, stat.st_mtime_ns, _sha(b"one")]
    assert folder_digest(model, names, memory) == first and hashed == ["index.json", "w"]
    assert memory.stat().st_mtime_ns == written.st_mtime_ns and memory.stat().st_ino == written.st_ino
    weights.write_bytes(b"two")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert folder_digest(model, names, memory) != first and hashed[2:] == ["w"]
    weights.write_bytes(b"three")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    folder_digest(model, names, memory)
    assert hashed[2:] == ["w", "w"], "another size at the same time is another file"


def test_a_cache_that_was_damaged_counts_for_nothing(tmp_path: Path) -> None:
    """Else one wrong digit of it would have every stage computed once more."""
    model, memory, names = _model(tmp_path), tmp_path / "memory.json", ["index.json", "vae/w"]
    right = folder_digest(model, names, memory)
    text = memory.read_text()
    memory.write_text(text.replace(_sha(b"one"), _sha(b"two")))
    assert folder_digest(model, names, memory) == right and memory.read_text() == text


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    model, memory, names = _model(tmp_path), tmp_path / "memory.json", ["index.json", "vae/w"]
    right = folder_digest(model, names, memory)
    memory.unlink()
    monkeypatch.setattr(fingerprint, "write_text", refused)
    assert folder_digest(model, names, memory) == right and not memory.exists()
