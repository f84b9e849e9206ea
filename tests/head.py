"""A head node of Ray in processes of its own, with a dashboard, a token and free ports, on loopback alone."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import PATIENCE

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """Where the dashboard is, and the token it asks for."""

    address: str
    token: str

    def environment(self, token: bool = True) -> dict[str, str]:
        """For those who talk to it, with the token or without."""
        spoken = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token} if token else {"RAY_AUTH_MODE": "disabled"}
        return {**os.environ, "PYTHONUNBUFFERED": "1", **spoken}

    def command(self, *arguments: str, token: bool = True) -> subprocess.Popen[str]:
        """`adatsq-pipe` with these arguments, started."""
        return subprocess.Popen(
            [sys.executable, "-m", "adatsq_pipe.pipeline.commands.cli", *arguments], cwd=ROOT, text=True,
            env=self.environment(token), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def job(self, name: str, *command: str, environment: str = "{}") -> None:
        """Hand in a job by Ray's own command."""
        subprocess.run(
            [BIN / "ray", "job", "submit", "--no-wait", "--address", self.address, "--submission-id", name,
             "--runtime-env-json", environment, "--", *command],
            check=True, capture_output=True, env=self.environment(),
        )  # fmt: skip


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def head(cpus: int = 3) -> Iterator[Head]:
    """Started, and ended with everything that it started."""
    folder, token, dashboard = tempfile.mkdtemp(prefix="ray"), secrets.token_hex(32), free_port()
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    with Path(folder, "head.log").open("w") as log:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
             f"--dashboard-port={dashboard}", f"--port={free_port()}", f"--ray-client-server-port={free_port()}",
             "--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0", f"--num-cpus={cpus}",
             f"--temp-dir={folder}", "--object-store-memory=134217728", "--disable-usage-stats"],
            cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _wait(f"http://127.0.0.1:{dashboard}/api/version", token, process, Path(folder, "head.log"))
        yield Head(f"http://127.0.0.1:{dashboard}", token)
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=60).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no dashboard came up: {log.read_text()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """As a machine goes: everything at once, with no time to say goodbye."""
    root = psutil.Process(process.pid)
    family = [root, *root.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=PATIENCE)
    process.wait(timeout=PATIENCE)
