"""Workers as copies of a template: what a copy gets from what it stands for, when it ends, and when there is none."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from adatsq_pipe.cluster import worker_template
from adatsq_pipe.cluster.worker_copy import copied
from adatsq_pipe.cluster.worker_template import WorkerTemplate

SCRIPT = """
import json, os, sys, time
kept = {"arguments": sys.argv[1:], "folder": os.getcwd(), "mark": os.environ.get("MARK"), "name": __name__,
        "gone": os.environ.get("GONE"), "parent": os.getppid(), "niceness": os.nice(0), "pid": os.getpid(),
        "imported": [name for name in ("tests.support.slow_import", "tests.support.slow_math") if name in sys.modules],
        "place": sys.path[0], "threads": os.environ.get("OMP_NUM_THREADS"), "line": sys.stdin.readline()}
print(json.dumps(kept), flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "scripts" / "worker.py"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerTemplate]:
    """A template that has imported a module that nothing else imports."""
    for name in ("OMP_NUM_THREADS", "MARK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GONE", "of the template alone")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    made = WorkerTemplate.start(("tests.support.slow_import",), 1.5)
    assert made is not None
    yield made
    made.close()


def _asked(py_executable: str, script: Path, seconds: float, folder: Path) -> subprocess.Popen[str]:
    """What Ray does: a command line that a shell runs, with an environment and streams of its own."""
    return subprocess.Popen(
        f"exec nice -n 3 {py_executable} {shlex.join([str(script), str(seconds), 'two words'])}",
        shell=True, cwd=folder, env={"PATH": os.environ["PATH"], "MARK": "of the worker"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def _said(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("a line\n")
    process.stdin.flush()
    said: dict[str, object] = json.loads(process.stdout.readline())
    return said


@pytest.mark.run
def test_a_copy_has_the_imports_of_the_template_and_all_else_of_what_it_stands_for(
    template: WorkerTemplate, script: Path, tmp_path: Path
) -> None:
    process = _asked(template.py_executable, script, 60, tmp_path)
    said = _said(process)
    assert said == {
        "arguments": ["60", "two words"], "folder": str(tmp_path), "mark": "of the worker", "name": "__main__",
        "gone": None, "parent": template._process.pid, "niceness": os.nice(0) + 3, "pid": said["pid"],
        "imported": ["tests.support.slow_import"], "place": str(script.parent), "threads": "1", "line": "a line\n",
    }  # fmt: skip
    copy = psutil.Process(int(str(said["pid"])))
    process.kill()  # what Ray started: the copy ends with it
    process.communicate(timeout=20)
    copy.wait(20)
    process = _asked(template.py_executable, script, 0, tmp_path)
    assert _said(process)["parent"] == template._process.pid
    process.communicate(timeout=20)  # and what Ray started ends with the copy
    assert process.returncode == 0
    process = _asked(template.py_executable, script, 60, tmp_path)
    copy = psutil.Process(int(str(_said(process)["pid"])))
    copy.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)


@pytest.mark.parametrize("unread", [b"", b"started"])
def test_a_copy_ends_also_if_the_other_side_has_not_read_all(unread: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is reset then, not closed."""
    killed = list[tuple[int, int]]()
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    own, other = socket.socketpair()
    own.sendall(unread)
    other.close()
    worker_template._end_with(own)
    own.close()
    assert killed == [(os.getpid(), signal.SIGKILL)]


@pytest.mark.run
def test_without_a_template_or_of_one_with_threads_the_worker_is_a_new_process(
    template: WorkerTemplate, script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    threaded = WorkerTemplate.start(("threaded",), 1)
    assert threaded is not None
    gone = template.py_executable
    template.close()
    for py_executable in (gone, threaded.py_executable):
        process = _asked(py_executable, script, 0, tmp_path)
        said = _said(process)
        assert (said["pid"], said["imported"], said["threads"]) == (process.pid, [], None)
        assert said["arguments"] == ["0", "two words"]
        process.communicate(timeout=20)
    assert threaded._process.wait(20) == 0
    threaded.close()


@pytest.mark.run
def test_a_template_ends_with_the_process_that_started_it() -> None:
    code = (
        "import time; from adatsq_pipe.cluster.worker_template import WorkerTemplate; "
        "made = WorkerTemplate.start((), 1); print(made._process.pid, made._folder, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert starter.stdout is not None
    pid, folder = starter.stdout.readline().split()
    template = psutil.Process(int(pid))
    starter.kill()
    starter.communicate()
    end = time.monotonic() + 20
    while template.is_running() and template.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the template outlives its starter"
        time.sleep(0.02)
    assert not Path(folder).exists()


def test_no_answer_is_no_copy(tmp_path: Path) -> None:
    assert not copied(str(tmp_path / "nothing"), ["script.py"])


def test_a_long_folder_for_temporary_files_is_not_taken_for_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = worker_template._folder()
    assert folder is not None and not folder.startswith(str(long)) and os.stat(folder).st_mode & 0o777 == 0o700
    os.rmdir(folder)
    assert list(long.iterdir()) == []


def test_there_is_no_template_of_workers_with_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert WorkerTemplate.start((), 2) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert WorkerTemplate.start((), 1) is None


def test_there_is_no_template_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert WorkerTemplate.start((), 1) is None
