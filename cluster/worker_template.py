"""The worker template: a process that imports what workers need, and of which the workers are copies (forks).

Importing torch and diffusers takes seconds of CPU time. With a template they are imported once for all workers of this
machine, while Ray starts, and the workers share that memory. Ray runs its workers by `py_executable` of its runtime
environment, as it does for `uv run`: here that is `worker_copy`, which asks the template for a copy and stands for it.

A copy begins like any worker: Ray's own script, with the environment that Ray gives it. A process with several threads
cannot be copied safely, nor can one that has opened a GPU. So workers on GPUs have no template, nor have those with
several threads, which numpy starts when it is imported. A template whose imports started threads all the same refuses:
its workers are then new processes, as on a cluster.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adatsq_pipe.cluster import worker_copy
from adatsq_pipe.cluster.session_folder import LONGEST, SHORT

THREADS = "OMP_NUM_THREADS"
"""Ray sets it for a worker before anything is imported; numpy and torch read it when they are imported."""


class WorkerTemplate:
    """The template's process, from `start` to `close`. It also ends with this process."""

    def __init__(self, process: subprocess.Popen[bytes], folder: str) -> None:
        self._process, self._folder = process, folder

    @classmethod
    def start(cls, modules: Sequence[str], cpus: float) -> WorkerTemplate | None:
        """Start a template that imports `modules`, for workers with so many CPUs; None where there can be none."""
        threads = os.environ.get(THREADS) or str(max(1, int(cpus)))
        folder = _folder() if sys.platform == "linux" and threads == "1" else None
        if folder is None:
            return None
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(_socket(folder))
            listener.listen(64)
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, folder, str(listener.fileno()), *modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                env={**os.environ, THREADS: threads},
                start_new_session=True,
            )
        return cls(process, folder)

    @property
    def py_executable(self) -> str:
        """What Ray runs its workers by."""
        return shlex.join([sys.executable, "-IS", worker_copy.__file__, _socket(self._folder)])

    def close(self) -> None:
        """End the template. Copies live on."""
        self._process.kill()
        self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)


def _folder() -> str | None:
    """A new folder, of this user alone, whose path is short enough for a socket; None if there is none."""
    for place in (tempfile.gettempdir(), *map(os.path.expanduser, SHORT)):
        try:
            folder = tempfile.mkdtemp(prefix="adatsq-", dir=place)
        except OSError:
            continue
        if len(os.fsencode(_socket(folder))) <= LONGEST:
            return folder
        os.rmdir(folder)
    return None


def _socket(folder: str) -> str:
    return os.path.join(folder, "template")


class _Request(NamedTuple):
    """What a copy is asked to be, and the connection that it holds until it ends."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    niceness: int
    oom_score_adj: str
    streams: list[int]
    connection: socket.socket


def serve(listener: socket.socket, modules: Sequence[str]) -> _Request | None:
    """Import the modules, then answer requests. Returns in each copy with its request, and in the template with None
    when the process that started it has ended, or if it cannot be copied."""
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # a copy's garbage collector then leaves these objects' memory shared
    if len(os.listdir("/proc/self/task")) > 1:
        return None
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no copy stays behind as a zombie
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return None
        connection, _ = listener.accept()
        try:
            request = _received(connection)
        except (OSError, TypeError, ValueError):
            connection.close()
            continue
        if os.fork() == 0:
            listener.close()
            return request
        connection.close()
        for descriptor in request.streams:
            os.close(descriptor)


def _received(connection: socket.socket) -> _Request:
    """Raises OSError, TypeError or ValueError if no whole request comes."""
    head, streams, _, _ = socket.recv_fds(connection, worker_copy.LENGTH, 3)
    length, text = int.from_bytes(head, "big"), b""
    while len(text) < length and (part := connection.recv(length - len(text))):
        text += part
    return _Request(**json.loads(text), streams=streams, connection=connection)


def become(request: _Request) -> None:
    """Be the worker that the request asks for, until it ends; nothing if nobody waits for it any more."""
    try:
        request.connection.sendall(worker_copy.STARTED)
    except OSError:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for place, descriptor in enumerate(request.streams):
        os.dup2(descriptor, place)
        os.close(descriptor)
    threads = os.environ[THREADS]
    os.environ.clear()
    os.environ.update({THREADS: threads, **request.environment})
    os.chdir(request.folder)
    os.nice(request.niceness - os.nice(0))
    Path("/proc/self/oom_score_adj").write_text(request.oom_score_adj, "utf-8")
    threading.Thread(target=_end_with, args=(request.connection,), daemon=True).start()
    script = request.command[0]
    sys.argv[:] = request.command
    sys.path.insert(0, os.path.dirname(script))
    runpy.run_path(script, run_name="__main__")


def _end_with(connection: socket.socket) -> None:
    """End at once when the other side does: whoever kills what Ray started means this process."""
    with contextlib.suppress(OSError):  # a reset, if it ends before it has read all
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Called with the socket's folder, its descriptor and the modules."""
    folder, descriptor, *modules = sys.argv[1:]
    if request := serve(socket.socket(fileno=int(descriptor)), modules):
        become(request)
    else:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
