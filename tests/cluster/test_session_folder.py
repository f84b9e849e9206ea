"""A TMPDIR of any length: Ray's sockets need a path of at most 107 bytes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adatsq_pipe.cluster import ray_executor, session_folder
from adatsq_pipe.cluster.errors import ClusterUnreachable
from adatsq_pipe.cluster.ray_executor import RayExecutor
from adatsq_pipe.cluster.resources import Resources
from tests.support.fake_ray import FakeRay

LONG = "/somewhere/" + "x" * 99


@pytest.fixture(autouse=True)
def _no_folder_of_ray_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)


@pytest.mark.parametrize("folder", ["", "/tmp", "/tmp/user-1000"])
def test_a_short_folder_is_left_to_ray(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", folder)
    with session_folder.session_folder() as found:
        assert found is None


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("folder", [LONG, "/tmp/" + "é" * 25, "relative/" + "x" * 60])
def test_in_place_of_a_long_one_stands_a_short_one_that_is_removed(
    name: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, folder)
    with session_folder.session_folder() as found:
        assert found is not None
        path = Path(found, "session_2026-11-29_09-12-57_298193_4194304", "sockets", "plasma_store")
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    assert not Path(found).parent.exists()


def test_where_no_folder_is_short_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", LONG)
    monkeypatch.setattr(session_folder, "SHORT", (LONG, "/nowhere"))
    with pytest.raises(ClusterUnreachable, match="set RAY_TMPDIR to a folder with a short path") as caught:
        RayExecutor(Resources(workers=1), "long")
    assert LONG in str(caught.value) and "\n" not in str(caught.value)


def test_ray_is_told_the_short_folder_and_it_goes_when_ray_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(cluster={"CPU": 2.0})
    fake.install(monkeypatch, ray_executor)
    monkeypatch.setenv("TMPDIR", LONG)
    executor = RayExecutor(Resources(workers=1), "long")
    folder = fake.init_options["_temp_dir"]
    assert len(folder) < 40 and Path(folder).parent.is_dir()
    executor.close()
    assert not Path(folder).parent.exists()
    monkeypatch.setenv("TMPDIR", "/tmp")
    RayExecutor(Resources(workers=1), "short").close()
    assert "_temp_dir" not in fake.init_options


def test_a_ray_that_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: object) -> None:
        raise OSError("validate_socket_filename failed\nand more")

    monkeypatch.setattr(ray_executor.ray, "init", refused)
    monkeypatch.setenv("TMPDIR", LONG)
    before = set(Path("/tmp").glob("ray-*"))
    with pytest.raises(ClusterUnreachable, match=r"cannot start on this machine \(validate_socket.* inline") as caught:
        RayExecutor(Resources(workers=1), "refused")
    assert "\n" not in str(caught.value) and set(Path("/tmp").glob("ray-*")) == before


@pytest.mark.run
def test_a_real_ray_starts_with_a_tmpdir_of_110_characters(tmp_path: Path) -> None:
    long = tmp_path / ("x" * max(1, 109 - len(str(tmp_path))))
    long.mkdir()
    script = (
        "from adatsq_pipe.cluster.ray_executor import RayExecutor\n"
        "from adatsq_pipe.cluster.resources import Resources\n"
        "executor = RayExecutor(Resources(workers=1), 'long')\nexecutor.close()\nprint('started')\n"
    )
    environment = {**os.environ, "TMPDIR": str(long), "RAY_TMPDIR": ""}
    del environment["RAY_TMPDIR"]
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "started\n", done.stderr
    assert list(long.iterdir()) == []
