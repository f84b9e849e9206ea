"""Jobs on a real head: what is sent, how they end, what a broken connection costs."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from adatsq_pipe.cluster import wheel
from adatsq_pipe.pipeline.commands.remote import ROOMS
from tests.conftest import PATIENCE
from tests.head import Head, head

pytestmark = [pytest.mark.extended, pytest.mark.run]

COUNT = "import time\nfor i in range(40):\n    print('line', i, flush=True)\n    time.sleep(0.1)\n"


@pytest.fixture(scope="module")
def ray_head() -> Iterator[Head]:
    with head() as made:
        yield made


def _ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def test_jobs_import_the_wheel_that_is_sent(ray_head: Head, tmp_path: Path) -> None:
    packed = wheel.pack("adatsq-pipe", ROOMS, tmp_path)
    script = (
        "import importlib.metadata as m, adatsq_pipe.stages.scenes as s\n"
        "print('at', list(s.__path__)[0])\nprint('version', m.version('adatsq-pipe'))\n"
    )
    ray_head.job("wheel", sys.executable, "-c", script, environment=json.dumps({"py_modules": [str(packed)]}))
    code, out, err = _ended(ray_head.command("attach", "wheel", "--address", ray_head.address))
    assert code == 0, err
    at = next(line for line in out.splitlines() if line.startswith("at "))
    assert "py_modules_files" in at
    assert f"version {packed.name.split('-')[1]}" in out


def test_attach_exits_as_the_job_does(ray_head: Head) -> None:
    following = {}
    for code in (0, 1, 2, 75):
        ray_head.job(f"exits-{code}", "exit", str(code))
        following[code] = ray_head.command("attach", f"exits-{code}", "--address", ray_head.address)
    for code, process in following.items():
        got, out, err = _ended(process)
        assert got == code, (got, out, err)
        assert ("kept" in err) == (code == 75) and ("failed with exit code" in err) == (code in (1, 2)), err


def test_a_job_that_is_stopped_is_to_be_run_again(ray_head: Head) -> None:
    ray_head.job("stopped", "sleep", "60")
    following = ray_head.command("attach", "stopped", "--address", ray_head.address)
    stop = [Path(sys.executable).with_name("ray"), "job", "stop", "--address", ray_head.address, "stopped"]
    subprocess.run(stop, check=True, capture_output=True, env=ray_head.environment())
    code, _, err = _ended(following)
    assert code == 75 and "was stopped" in err, err


def test_an_environment_that_cannot_be_made_is_reported(ray_head: Head, tmp_path: Path) -> None:
    broken = tmp_path / "broken-1-py3-none-any.whl"
    broken.write_text("no wheel")
    ray_head.job("broken", "true", environment=json.dumps({"py_modules": [str(broken)]}))
    code, _, err = _ended(ray_head.command("attach", "broken", "--address", ray_head.address))
    assert code == 1 and "did not start" in err and "broken-1" in err, err


def test_a_broken_connection_is_opened_again_and_nothing_is_shown_twice(ray_head: Head) -> None:
    ray_head.job("count", sys.executable, "-c", COUNT)
    with _cutting(ray_head.address) as (address, cuts):
        code, out, err = _ended(ray_head.command("attach", "count", "--address", address))
    assert code == 0, err
    assert cuts == ["cut", "cut"]
    assert [line for line in out.splitlines() if line.startswith("line ")] == [f"line {i}" for i in range(40)]


def test_a_taken_id_an_unknown_job_and_a_missing_token_are_one_line(ray_head: Head, tmp_path: Path) -> None:
    ray_head.job("taken", "true")
    to = ("--address", ray_head.address)
    again = ("submit", *to, "--no-pip", "--submission-id", "taken", "--", "run", "--run-dir", str(tmp_path))
    asked = {
        "already has a job taken": ray_head.command(*again),
        "has no job nobody": ray_head.command("attach", "nobody", *to),
        "RAY_AUTH_MODE=token": ray_head.command("attach", "taken", *to, token=False),
    }
    for words, process in asked.items():
        code, out, err = _ended(process)
        assert code == 1 and words in err and err.startswith("error:") and err.count("\n") == 1, (words, out, err)
        assert ray_head.token not in out + err


def test_a_ray_of_our_own_listens_on_loopback_alone() -> None:
    script = (
        "from adatsq_pipe.pipeline.runner import Executors\nfrom adatsq_pipe.pipeline import config\n"
        "from adatsq_pipe.storage.rundir import RunDir\nfrom pathlib import Path\n"
        "made = config.load(preset=None, file=None, sets=['cluster.workers=1'], model=None, previous=None)\n"
        "e = Executors(made, RunDir(Path('nowhere')))\ne.get()\nprint('up', flush=True)\ninput()\ne.close()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        found = _listening(process.pid)
    finally:
        process.communicate("\n", timeout=PATIENCE)
    assert found and not [a for a in found if a not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]


def _listening(pid: int) -> list[str]:
    """Addresses on which a process and its descendants listen."""
    return [
        connection.laddr.ip
        for member in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))
        for connection in member.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]


class _cutting:
    """A way to the head that breaks the first two connections that follow a log, each after some of it came through."""

    def __init__(self, address: str) -> None:
        self.port = int(address.rpartition(":")[2])
        self.server = socket.create_server(("127.0.0.1", 0))
        self.cuts: list[str] = []

    def __enter__(self) -> tuple[str, list[str]]:
        threading.Thread(target=self._accept, daemon=True).start()
        return f"http://127.0.0.1:{self.server.getsockname()[1]}", self.cuts

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.port))
            threading.Thread(target=self._pass, args=(near, far), daemon=True).start()

    def _pass(self, near: socket.socket, far: socket.socket) -> None:
        tail, back = False, 0
        with near, far:
            while True:
                for one in select.select([near, far], [], [])[0]:
                    data = one.recv(4096)
                    if not data:
                        return
                    tail = tail or b"/logs/tail" in data
                    back += b"line 1" in data and one is far
                    (far if one is near else near).sendall(data)
                if tail and back and len(self.cuts) < 2:
                    self.cuts.append("cut")
                    return
