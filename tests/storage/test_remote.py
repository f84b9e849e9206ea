"""A store and its mirror: which requests are made, what the mirror keeps, which URLs and names are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.remote import Remote, is_url, mirror_path, open_remote
from tests.support.memory_store import RecordingStore, remote_of


@pytest.fixture
def store() -> RecordingStore:
    store = RecordingStore()
    for name, data in (("run.json", b"{}"), ("a/1", b"one"), ("a/2", b""), ("a/b/3", b"three"), ("ab/4", b"four")):
        store.pipe_file(f"/run/{name}", data)
    store.pipe_file("/running/5", b"five")
    return store


@pytest.fixture
def remote(store: RecordingStore, tmp_path: Path) -> Remote:
    return remote_of(store, tmp_path / "mirror")


def test_a_listing_says_what_is_there_with_its_sizes(remote: Remote) -> None:
    assert not remote.is_current and remote.sizes == {}
    remote.refresh()
    assert remote.sizes == {"run.json": 2, "a/1": 3, "a/2": 0, "a/b/3": 5, "ab/4": 4} and remote.is_current
    assert remote.list_prefix("a") == ["a/1", "a/2", "a/b/3"] and remote.list_prefix("b") == []
    remote.invalidate()
    assert not remote.is_current
    assert remote.download(["a/1"]) == []
    (remote.local / "a/0").write_bytes(b"")
    remote.upload(["a/0"])
    assert remote.list_prefix("a") == ["a/0", "a/1", "a/2", "a/b/3"], "sorted, in whatever order the names became known"


def test_a_listing_of_a_part_replaces_what_was_known_of_it_alone(remote: Remote, store: RecordingStore) -> None:
    remote.refresh()
    remote.invalidate()
    store.rm(["/run/a/1", "/run/ab/4"])
    store.pipe_file("/run/a/9", b"nine")
    remote.refresh("a")
    assert remote.sizes == {"run.json": 2, "a/2": 0, "a/b/3": 5, "a/9": 4, "ab/4": 4} and not remote.is_current
    remote.refresh("nowhere")
    remote.refresh()
    assert remote.sizes == {"run.json": 2, "a/2": 0, "a/b/3": 5, "a/9": 4}
    store.rm("/run", recursive=True)
    remote.refresh()
    assert remote.sizes == {}


def test_a_listing_does_not_come_from_a_cache(remote: Remote, store: RecordingStore) -> None:
    store.calls.clear()
    remote.refresh("a")
    assert store.calls == [("invalidate_cache",), ("find", "/run/a")]


def test_a_store_whose_names_lead_out_is_refused(remote: Remote, store: RecordingStore, tmp_path: Path) -> None:
    store.store["/run/../../escaped"] = store.store["/run/run.json"]
    with pytest.raises(StorageError, match="leads out of it"):
        remote.refresh()
    assert not (tmp_path.parent / "escaped").exists()


def test_a_file_is_asked_for_once(remote: Remote, store: RecordingStore) -> None:
    assert remote.exists("a/1") and not remote.exists("a/7")
    store.rm("/run/a/1")
    store.pipe_file("/run/a/7", b"7")
    assert remote.exists("a/1"), "a known file is not asked for again until the next listing"
    assert remote.exists("a/7") and remote.sizes == {"a/1": 3, "a/7": 1}, "a file that was missing may exist now"


def test_files_are_downloaded_in_one_request_and_once(remote: Remote, store: RecordingStore) -> None:
    store.calls.clear()
    assert remote.download(["a/1", "a/7", "a/b/3"]) == ["a/7"]
    assert {str(p.relative_to(remote.local)): p.read_bytes() for p in remote.local.rglob("*") if p.is_file()} == {
        "a/1": b"one",
        "a/b/3": b"three",
    }
    assert [path.name for path in remote.local.iterdir()] == ["a"], "no partial download is left"
    assert remote.download(["a/1", "a/b/3"]) == [] and store.requests("get") == [["/run/a/1", "/run/a/b/3"]]
    (remote.local / "a/1").write_bytes(b"longer")
    (remote.local / "a/b/3").unlink()
    remote.download(["a/1", "a/b/3", "a/2"])
    assert store.requests("get")[1:] == [["/run/a/1", "/run/a/b/3", "/run/a/2"]]
    assert (remote.local / "a/1").read_bytes() == b"one" and (remote.local / "a/2").read_bytes() == b""


def test_a_file_that_changed_is_downloaded_when_a_refresh_is_asked_for(remote: Remote, store: RecordingStore) -> None:
    remote.download(["a/1"])
    store.pipe_file("/run/a/1", b"other")
    remote.download(["a/1"])
    assert (remote.local / "a/1").read_bytes() == b"one"
    assert remote.download(["a/1"], refresh=True) == []
    assert (remote.local / "a/1").read_bytes() == b"other" and remote.sizes["a/1"] == 5


def test_an_old_mirror_is_not_trusted(remote: Remote, store: RecordingStore) -> None:
    (remote.local / "a").mkdir(parents=True)
    (remote.local / "a/1").write_bytes(b"old")
    remote.download(["a/1"])
    assert (remote.local / "a/1").read_bytes() == b"one", "an unlisted file is downloaded, even if the sizes agree"


def test_files_are_uploaded_under_their_names(remote: Remote, store: RecordingStore) -> None:
    for name, data in (("x/1", b"x1"), ("y", b"")):
        (remote.local / name).parent.mkdir(parents=True, exist_ok=True)
        (remote.local / name).write_bytes(data)
    store.calls.clear()
    remote.upload(["x/1", "y"])
    remote.upload([])
    assert store.calls == [("put", "/run/x/1", "/run/y")]
    assert store.cat_file("/run/x/1") == b"x1" and store.cat_file("/run/y") == b""
    assert remote.sizes == {"x/1": 2, "y": 0} and remote.exists("y")


def test_files_are_removed_if_they_are_there(remote: Remote, store: RecordingStore) -> None:
    remote.refresh()
    remote.remove(["a/1", "a/7"])
    assert not store.exists("/run/a/1") and store.exists("/run/a/2") and "a/1" not in remote.sizes
    assert not remote.exists("a/1")
    store.calls.clear()
    remote.remove(["a/7"])
    assert store.requests("rm") == []


@pytest.mark.parametrize(("text", "url"), [("s3://b/x", True), ("memory://x", True), ("/a/b", False), ("a:b/c", False)])
def test_a_url_has_a_scheme(text: str, url: bool) -> None:
    assert is_url(text) is url


def test_a_store_is_opened_once_and_its_mirror_has_a_place_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADATSQ_PIPE_CACHE", str(tmp_path))
    remote = open_remote(f"memory://{tmp_path.name}/run/")
    name = hashlib.sha256(f'"memory://{tmp_path.name}/run"'.encode()).hexdigest()[:16]
    assert remote.url == f"memory://{tmp_path.name}/run" and remote.local == tmp_path / name
    assert remote.base == f"/{tmp_path.name}/run" and open_remote(f"memory://{tmp_path.name}/run/") is remote
    monkeypatch.delenv("ADATSQ_PIPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert mirror_path(remote.url) == tmp_path / "xdg" / "adatsq-pipe" / name
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert mirror_path(remote.url) == Path.home() / ".cache" / "adatsq-pipe" / name


@pytest.mark.parametrize(
    "url", ["s3://key:hunter2@bucket/run", "s3://key@bucket/run", "s3://bucket/run?secret=hunter2"]
)
def test_a_url_with_credentials_is_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(StorageError, match="never in the URL") as caught:
        open_remote(url)
    assert "hunter2" not in str(caught.value) and "s3://bucket/run" in str(caught.value)


def test_a_store_whose_package_is_not_there_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs")

    monkeypatch.setattr("fsspec.core.url_to_fs", lacking)
    for url, words in (
        ("s3://b/x", r"'adatsq-pipe\[s3\]'"),
        ("gcs://b/x", r"'adatsq-pipe\[gs\]'"),
        ("abfs://b/x", "fsspec"),
    ):
        with pytest.raises(StorageError, match=words):
            open_remote(url)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match="not a URL that fsspec knows"):
        open_remote("nosuch://bucket/run")
