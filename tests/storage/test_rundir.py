"""A run directory in a folder and at a URL: its small files, its lock, its model, and its refusals."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.fingerprint import Plain
from adatsq_pipe.storage.remote import open_remote
from adatsq_pipe.storage.rundir import RunDir

SHA = "ab" * 32


def _there(run: RunDir) -> dict[str, bytes]:
    """Everything that the store holds, read with fsspec alone."""
    root = run.url.removeprefix("memory:/")
    files = fsspec.filesystem("memory")
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("ADATSQ_PIPE_CACHE", str(tmp_path / "cache"))
    open_remote.cache_clear()
    fsspec.filesystem("memory").store.clear()
    yield f"memory://{tmp_path.name}/run"
    open_remote.cache_clear()


def _machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on we are a machine whose mirrors are in `cache`."""
    monkeypatch.setenv("ADATSQ_PIPE_CACHE", str(cache))
    open_remote.cache_clear()


def test_a_run_directory_is_named_by_a_path_or_a_url(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert RunDir.at("runs/a") == RunDir.at(f"file://{tmp_path}/runs/a") == RunDir(tmp_path / "runs/a")
    assert RunDir.at("~/a").path == tmp_path / "home/a" and RunDir.at("runs/a").uri == str(tmp_path / "runs/a")
    there = RunDir.at(url + "/")
    assert there.uri == url and there.path.parent == tmp_path / "cache" and there.remote is open_remote(url)
    assert RunDir.at("runs/a").remote is None and not (tmp_path / "runs").exists()


def test_a_run_directory_is_shown_as_one_would_write_it(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    assert RunDir(tmp_path / "runs/a").display() == "runs/a" and RunDir(tmp_path / "a").display("model") == "a/model"
    monkeypatch.chdir(tmp_path / "below")
    assert RunDir(tmp_path / "a").display("model") == f"{tmp_path}/a/model"
    assert RunDir.at(url).display() == url and RunDir.at(url).display("model") == f"{url}/model"


def test_paths_hold_sixteen_digits_of_a_fingerprint(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    manifest = run.manifest("solve", "0123456789abcdef" * 4)
    assert (manifest.stage, manifest.folder) == ("solve", tmp_path / "solve/0123456789abcdef")
    assert run.published_folder("a" * 64, "b" * 64) == tmp_path / "published" / ("a" * 16) / ("b" * 16)
    assert (run.model, run.report) == (tmp_path / "model", tmp_path / "report")
    assert run.digest_cache == tmp_path / "model_files.json"


def test_a_new_directory_gets_its_format_and_an_old_one_keeps_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert not run.exists()
    run.create()
    assert json.loads((run.path / "run.json").read_text()) == {"format": 1} and run.exists()
    before = (run.path / "run.json").stat()
    run.create()
    assert (run.path / "run.json").stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "holds no run"),
        ("{", "is not readable"),
        ("[1]", "is not readable"),
        ("{}", "is not readable"),
        ('{"format": 2}', "format 2, this version reads format 1"),
        ('{"format": 0}', "format 0, this version reads format 1"),
    ],
)
def test_a_directory_of_another_format_is_refused(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(StorageError, match=words):
        RunDir(tmp_path).check()
    if text is not None:
        with pytest.raises(StorageError, match=words):
            RunDir(tmp_path).create()


def test_a_folder_of_something_else_is_not_made_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StorageError, match="is not empty and holds no run"):
        RunDir(tmp_path).create()
    assert os.listdir(tmp_path) == ["thesis.tex"]
    (tmp_path / "thesis.tex").rename(tmp_path / ".DS_Store")
    RunDir(tmp_path).create()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refused)
    with pytest.raises(StorageError, match="cannot be written"):
        RunDir(tmp_path / "run").create()


def test_a_store_that_holds_something_else_is_not_made_a_run(url: str) -> None:
    fsspec.filesystem("memory").pipe_file(f"{url}/thesis.tex", b"x")
    run = RunDir.open(url)
    with pytest.raises(StorageError, match="is not empty and holds no run"):
        run.create()
    assert list(_there(run)) == ["thesis.tex"]


def test_a_second_lock_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    named = f"in use by process {os.getpid()} on {socket.gethostname()}"
    with run.lock() as message:
        assert message == "" and json.loads((run.path / ".holder.json").read_text())["pid"] == os.getpid()
        with pytest.raises(StorageError, match=named), RunDir(run.path).lock():
            pass
        (run.path / ".holder.json").write_text("{}")
        with pytest.raises(StorageError, match="in use by another process"), RunDir(run.path).lock():
            pass
    with RunDir(run.path).lock():
        pass


@pytest.mark.run
def test_a_lock_holds_against_other_processes_and_ends_with_an_error(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    script = (
        "import sys; from pathlib import Path; from adatsq_pipe.storage.rundir import RunDir\n"
        f"with RunDir(Path({str(run.path)!r})).lock(): print('mine')"
    )
    command = [sys.executable, "-c", script]
    with run.lock():
        held = subprocess.run(command, capture_output=True, text=True)
    with pytest.raises(RuntimeError, match="stop"), run.lock():
        raise RuntimeError("stop")
    assert held.returncode == 1 and f"in use by process {os.getpid()}" in held.stderr
    assert subprocess.run(command, capture_output=True, text=True).stdout == "mine\n"


def test_taking_the_lock_removes_what_killed_processes_left(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    manifest = run.manifest("solve", SHA)
    manifest.open_unit("u")
    manifest.commit("u")
    torn = run.path / "solve" / SHA[:16] / "attempts" / "elsewhere-1" / "v" / "torn"
    torn.parent.mkdir(parents=True)
    torn.touch()
    with run.lock():
        assert not torn.exists() and manifest.done("u")


def test_a_lock_in_a_store_is_held_there_and_swept_here(url: str) -> None:
    run = RunDir.open(url)
    run.create()
    manifest = run.manifest("solve", SHA)
    manifest.open_unit("u")
    manifest.commit("u")
    torn = manifest.open_unit("v")
    with run.lock() as message:
        assert message == "" and json.loads(_there(run)["lock.json"])["pid"] == os.getpid() and not torn.exists()
        with pytest.raises(StorageError, match="its lock ends in"), RunDir.at(url).lock():
            pass
    assert list(_there(run)) == ["run.json", f"solve/{SHA[:16]}/markers/u.json"]


def test_the_log_has_one_canonical_line_per_entry_and_torn_lines_are_skipped(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert list(run.log_entries()) == []
    first: dict[str, Plain] = {"stage": "capture", "fingerprint": SHA, "wall": 1.5}
    run.log(first)
    strange = b'{"stage": "fis\n[1]\n{"stage": "solve"}\n\xff\xfe\n' + b"[" * 100_000 + b"\n"
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(strange)
    run.log({**first, "stage": "solve", "wall": 2})
    assert (tmp_path / "log.jsonl").read_bytes() == (
        f'{{"fingerprint":"{SHA}","stage":"capture","wall":1.5}}\n'.encode()
        + strange
        + f'{{"fingerprint":"{SHA}","stage":"solve","wall":2}}\n'.encode()
    )
    assert list(run.log_entries()) == [first, {**first, "stage": "solve", "wall": 2}]


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000], ids=["empty", "torn", "a list", "a deep nest"])
def test_an_identity_that_cannot_be_read_is_left_out_and_written_again(text: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.record_identity("solve", SHA, {"n": 1})
    (tmp_path / "solve" / SHA[:16] / "identity.json").write_text(text)
    assert run.identities("solve") == []
    run.record_identity("solve", SHA, {"n": 1})
    assert run.identities("solve") == [{"n": 1}]


def test_the_log_is_uploaded_with_each_line(url: str) -> None:
    run = RunDir.open(url)
    run.create()
    for n in range(2):
        run.log({"n": n})
    assert _there(run)["log.jsonl"] == b'{"n":0}\n{"n":1}\n'


def test_identities_are_recorded_once_and_read_newest_first(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for n, sha in enumerate(("aa" * 32, "cc" * 32, "bb" * 32)):
        run.record_identity("solve", sha, {"n": n})
        os.utime(tmp_path / "solve" / sha[:16] / "identity.json", ns=(0, 10**9 * (n + 1)))
    run.record_identity("solve", "aa" * 32, {"n": 9})
    assert run.identities("solve") == [{"n": 2}, {"n": 1}, {"n": 0}] and run.identities("fisher") == []
    assert json.loads((tmp_path / "solve" / ("aa" * 8) / "identity.json").read_text()) == {"n": 0}


def test_the_stages_folders_are_those_that_hold_markers(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for stage, sha in (("solve", "b"), ("capture", "a"), ("solve", "a")):
        (tmp_path / stage / sha / "markers").mkdir(parents=True)
    (tmp_path / "report" / "x").mkdir(parents=True)
    assert [(m.stage, m.folder.name) for m in run.manifests()] == [("capture", "a"), ("solve", "a"), ("solve", "b")]


def test_the_stages_folders_of_a_store_are_those_of_its_listing(url: str) -> None:
    run = RunDir.open(url)
    for stage in ("solve", "capture"):
        manifest = run.manifest(stage, SHA)
        manifest.open_unit("u")
        manifest.commit("u")
    (run.path / "search" / "left" / "markers").mkdir(parents=True)
    open_remote.cache_clear()
    manifests = RunDir.open(url).manifests()
    assert [(m.stage, m.folder.name, m.remote is not None) for m in manifests] == [
        ("capture", SHA[:16], True),
        ("solve", SHA[:16], True),
    ]


def test_pictures_of_prompts_are_kept_under_their_digests(tmp_path: Path) -> None:
    run, picture = RunDir(tmp_path / "run"), tmp_path / "cat.png"
    picture.write_bytes(b"png")
    name = hashlib.sha256(b"png").hexdigest()
    run.add_prompt_images({name: picture})
    assert run.prompt_image(name) == tmp_path / "run/given" / name and run.prompt_image(name).read_bytes() == b"png"
    picture.write_bytes(b"other")
    run.add_prompt_images({name: picture})
    assert run.prompt_image(name).read_bytes() == b"png"
    with pytest.raises(StorageError, match="does not exist"):
        run.prompt_image("../run.json")


def test_pictures_of_prompts_come_from_the_store(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat.png").write_bytes(b"png")
    name = hashlib.sha256(b"png").hexdigest()
    RunDir.open(url).add_prompt_images({name: tmp_path / "cat.png"})
    _machine(tmp_path / "other", monkeypatch)
    other = RunDir.open(url)
    copy = other.prompt_image(name)
    assert copy.read_bytes() == b"png" and copy.is_relative_to(tmp_path / "other")
    copy.write_bytes(b"PNG")
    assert other.prompt_image(name).read_bytes() == b"png", "a damaged mirror is filled again"
    with pytest.raises(StorageError, match=f"{url}/given/nothing does not exist"):
        other.prompt_image("nothing")


def test_folders_and_files_are_uploaded_without_hidden_ones(url: str) -> None:
    run = RunDir.open(url)
    for name in ("report/summary.json", "report/deep/a.png", "report/.partial-1", "compare.md", "other"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_bytes(name.encode())
    run.upload("report", "compare.md")
    assert _there(run) == {n: n.encode() for n in ("compare.md", "report/deep/a.png", "report/summary.json")}


def test_opening_downloads_the_small_files_that_plans_need_and_no_others(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RunDir.open(url)
    first.create()
    first.write("config.toml", "a = 1")
    first.record_identity("solve", SHA, {"n": 1})
    manifest = first.manifest("solve", SHA)
    (manifest.open_unit("u") / "bytes").write_bytes(b"large")
    manifest.commit("u")
    manifest.open_unit("v")
    manifest.fail("v", "no")
    _machine(tmp_path / "other", monkeypatch)
    other = RunDir.at(url)
    other.path.mkdir(parents=True)
    (other.path / "model.json").write_text("of another day")
    (other.path / "config.toml").write_text("a = 2")
    other.refresh()
    here = {str(p.relative_to(other.path)): p for p in other.path.rglob("*") if p.is_file()}
    assert sorted(here) == [
        "config.toml",
        "run.json",
        f"solve/{SHA[:16]}/failures/v.json",
        f"solve/{SHA[:16]}/identity.json",
    ]
    assert here["config.toml"].read_text() == "a = 1" and other.identities("solve") == [{"n": 1}]


def test_a_store_that_does_not_answer_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.find", refused)
    with pytest.raises(StorageError, match=f"{url} cannot be read .*no route"):
        RunDir.open(url)


def _folder(run: RunDir, name: str, **files: str) -> Path:
    folder = run.path / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text)
    return folder


def test_the_model_is_a_link_to_what_was_published_last(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.publish(_folder(run, "published/a/b", weights="1"), "a", "b")
    assert os.readlink(run.model) == "published/a/b"
    run.publish(_folder(run, "published/c/d", weights="2"), "c", "d")
    assert (run.model / "weights").read_text() == "2"


def test_a_store_gets_a_copy_of_the_model_and_no_file_of_the_one_before(url: str) -> None:
    run = RunDir.open(url)
    run.publish(_folder(run, "published/a/b", weights="1", card="old"), "a" * 64, "b" * 64)
    run.publish(_folder(run, "published/c/d", weights="2"), "c" * 64)
    assert _there(run) == {
        "model/weights": b"2",
        "model.json": json.dumps(
            {"assembled": "c" * 16, "evaluated": "", "files": {"weights": [1, hashlib.sha256(b"2").hexdigest()]}}
        ).encode(),
    }


def test_a_model_with_its_evaluation_is_not_replaced_by_the_same_one_without(url: str) -> None:
    run = RunDir.open(url)
    one = _folder(run, "published/one", card="evaluated")
    run.publish(one, "a" * 64, "b" * 64)
    run.publish(_folder(run, "published/two", card="plain"), "a" * 64)
    assert _there(run)["model/card"] == b"evaluated"
    (one / "card").write_text("changed")
    run.publish(one, "a" * 64, "b" * 64)
    assert _there(run)["model/card"] == b"evaluated", "the same model is not uploaded again"
    run.publish(_folder(run, "published/three", card="other"), "a" * 64, "c" * 64)
    assert _there(run)["model/card"] == b"other"


def test_a_model_that_is_being_replaced_is_not_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir.open(url)
    run.publish(_folder(run, "published/one", card="1"), "a" * 64, "b" * 64)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDir, "upload", killed)
    with pytest.raises(KeyboardInterrupt):
        run.publish(_folder(run, "published/two", card="2"), "c" * 64, "d" * 64)
    assert "model.json" not in _there(run)


def test_a_picture_of_a_prompt_that_was_damaged_is_refused_and_copied_again(tmp_path: Path) -> None:
    run, picture = RunDir(tmp_path / "run"), tmp_path / "cat.png"
    picture.write_bytes(b"png")
    name = hashlib.sha256(b"png").hexdigest()
    run.add_prompt_images({name: picture})
    assert run.damaged_images() == []
    (run.path / "given" / name).write_bytes(b"PNG")
    assert run.damaged_images() == [name]
    with pytest.raises(StorageError, match="is damaged: it does not have the digest in its name; run again with"):
        run.prompt_image(name)
    run.add_prompt_images({name: picture})
    assert run.prompt_image(name).read_bytes() == b"png" and run.damaged_images() == []


@pytest.mark.parametrize("data", [b"", b"2222", b"1"], ids=["missing", "longer", "of the same size"])
def test_a_model_in_a_store_that_was_damaged_is_noticed_and_uploaded_again(data: bytes, url: str) -> None:
    run = RunDir.open(url)
    folder = _folder(run, "published/a/b", weights="2")
    run.publish(folder, "a" * 64, "b" * 64)
    stored, files = run.stored_model, fsspec.filesystem("memory")
    assert stored is not None and stored.damage(thorough=True) == ""
    path = url.removeprefix("memory:/") + "/model/weights"
    if data:
        files.pipe_file(path, data)
    else:
        files.rm(path)
    run.refresh()
    assert bool(stored.damage()) == (data != b"1"), "listing the store shows sizes alone"
    assert "model/weights" in stored.damage(thorough=True)
    stored.doubt()
    run.publish(folder, "a" * 64, "b" * 64)
    assert _there(run)["model/weights"] == b"2" and stored.damage(thorough=True) == ""


def test_what_killed_processes_left_is_removed_before_and_after_a_run(tmp_path: Path) -> None:
    """Also of stages that have no finished unit, and of other settings; finished bytes and exports stay."""
    run = RunDir(tmp_path / "run")
    run.create()
    manifest = run.manifest("capture", "1" * 64)
    (manifest.open_unit("u") / "bytes").write_text("1")
    manifest.commit("u")
    leftovers = [
        *("capture/" + "1" * 16 + "/attempts/host-1/v/bytes", "fisher/" + "2" * 16 + "/attempts/host-2/a/b/bytes"),
        *("published/a/b.unfinished/weights", "report/.partial-x", "capture/" + "1" * 16 + "/markers/.partial-y"),
        ".partial-z",
    ]
    others = ["published/a/b/weights", "exports/dequantized.unfinished/weights", "report/summary.json"]

    def make(names: list[str]) -> None:
        for name in names:
            (run.path / name).parent.mkdir(parents=True, exist_ok=True)
            (run.path / name).write_text(name)

    make([*leftovers, *others])
    with run.lock():
        assert not [name for name in leftovers if (run.path / name).exists()]
        assert not list(run.path.glob("*/*/attempts"))
        make(leftovers)
    assert not [name for name in leftovers if (run.path / name).exists()]
    assert all((run.path / name).read_text() == name for name in others) and manifest.verify("u")


@pytest.mark.parametrize("name", ["file", "file/run", "file/deep/run"])
def test_a_run_directory_that_is_a_file_or_below_one_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=f"cannot be a run directory: {tmp_path}/file is a file; name another"):
        RunDir(tmp_path / name).create()
    with pytest.raises(StorageError, match="holds no run"):
        RunDir(tmp_path / name).check()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_a_run_directory_that_cannot_be_written_is_refused_before_any_work(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise error

    run = RunDir(tmp_path / "run")
    run.create()
    with monkeypatch.context() as patched:
        patched.setattr("filelock.FileLock.acquire", refused)
        with pytest.raises(StorageError, match=f"run cannot be written .{error.strerror}.; check its perm"), run.lock():
            raise AssertionError("the body runs without a lock")
    with monkeypatch.context() as patched:
        patched.setattr("adatsq_pipe.storage.rundir.write_text", refused)
        with pytest.raises(StorageError, match=f"cannot be written .{error.strerror}."), run.lock():
            raise AssertionError("the body runs without a lock")
    with run.lock():
        """It is free again."""
