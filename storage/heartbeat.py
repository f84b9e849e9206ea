"""Signs of life: which process holds a run, which workers it has, and what they do. Only `status` reads them.

Each worker process has `workers/<host>-<pid>.json` in the run directory. A thread of it writes that again when its unit
changes, at most once a second, and at least every ten seconds. Nothing else depends on these files: no fingerprint, no
marker, no digest. A sign of life that is older than a minute counts for nothing. Clocks must agree that well.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adatsq_pipe.storage.files import write_text

if TYPE_CHECKING:
    from adatsq_pipe.storage.remote import Remote

FOLDER = "workers"
EVERY = 10.0
"""Seconds between two signs of life."""
PAUSE, REMOTE_PAUSE = 1.0, 10.0
"""Least seconds between two of them, in a folder and in a store: units of milliseconds must not wait for files."""
GONE = 60.0
"""Seconds after which a process that gives no sign counts as gone."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A process that works, or holds a run, and what it did when it last gave a sign of life."""

    host: str
    pid: int
    space: str
    """Its table of process numbers: the numbers of a container are not those of its host."""
    stage: str = ""
    fingerprint: str = ""
    """The first 16 digits of the stage's, as its folder is named."""
    unit: str = ""
    """Empty while the worker opens its model, or waits for its next unit."""
    opening: bool = False
    """Whether it opens its model."""
    since: float = 0.0
    """When it began that (Unix seconds)."""
    beat: float = 0.0
    """When it gave this sign (Unix seconds)."""

    @property
    def name(self) -> str:
        return f"{self.host}-{self.pid}"

    def is_alive(self, now: float) -> bool:
        """Whether the process gave a sign within the last minute, and on this machine also whether it is there."""
        here = (self.host, self.space) == (socket.gethostname(), process_space())
        return now - self.beat < GONE and not (here and not _exists(self.pid))

    def text(self) -> str:
        """The content of its file."""
        return json.dumps(asdict(self))

    @classmethod
    def here(cls) -> Beat:
        """Of this process, now."""
        now = time.time()
        return cls(host=socket.gethostname(), pid=os.getpid(), space=process_space(), since=now, beat=now)

    @classmethod
    def of(cls, body: Mapping[str, object]) -> Beat:
        """The beat of a file's content. Raises KeyError, TypeError or ValueError for another."""
        return cls(
            host=str(body["host"]),
            pid=int(str(body["pid"])),
            space=str(body.get("space", "")),
            stage=str(body.get("stage", "")),
            fingerprint=str(body.get("fingerprint", "")),
            unit=str(body.get("unit", "")),
            opening=body.get("opening") is True,
            since=float(str(body["since"])),
            beat=float(str(body["beat"])),
        )


def process_space() -> str:
    """Names this machine's table of process numbers; empty where the system does not say."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


class Pulse:
    """A thread that calls `write(beat)` when the state of this process changes, and every ten seconds, until it is
    closed.

    It never raises: signs of life must not end a run.
    """

    def __init__(self, write: Callable[[Beat], object], pause: float) -> None:
        self._write, self._pause, self._beat = write, pause, Beat.here()
        self._changed, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def unit(self) -> str:
        """What the process works on now; empty where it works on nothing."""
        return self._beat.unit

    def set(self, *, stage: str, fingerprint: str, unit: str = "", opening: bool = False) -> None:
        """From now on the process does this. Returns at once."""
        self._beat = replace(
            self._beat, stage=stage, fingerprint=fingerprint, unit=unit, opening=opening, since=time.time()
        )
        self._changed.set()

    def close(self) -> None:
        self._closed.set()
        self._changed.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._changed.wait(EVERY)
            if self._closed.is_set():
                return
            self._changed.clear()
            with suppress(Exception):  # a full disk, a store that does not answer, a run directory that was removed
                self._write(replace(self._beat, beat=time.time()))
            self._closed.wait(self._pause)


_pulse: tuple[str, Pulse] | None = None
"""The pulse of this process as a worker, and the run directory that it is of."""
_guard = threading.Lock()


@contextmanager
def at_work(run: Path, remote: Remote | None, *, stage: str, fingerprint: str, unit: str) -> Iterator[None]:
    """Inside, this process works on the unit (empty: it opens its model), and lets `status` know. Afterwards it works
    on what it did before, if one unit is written while another is worked on."""
    pulse = _pulse_of(run, remote)
    outer = pulse.unit
    pulse.set(stage=stage, fingerprint=fingerprint[:16], unit=unit, opening=not unit)
    try:
        yield
    finally:
        pulse.set(stage=stage, fingerprint=fingerprint[:16], unit=outer)


def _pulse_of(run: Path, remote: Remote | None) -> Pulse:
    global _pulse
    with _guard:
        if _pulse is None or _pulse[0] != str(run):
            if _pulse is not None:
                _pulse[1].close()
            pause = PAUSE if remote is None else REMOTE_PAUSE
            _pulse = (str(run), Pulse(lambda beat: _write(run, remote, beat), pause))
        return _pulse[1]


def rest() -> None:
    """End the signs of life of this process as a worker."""
    global _pulse
    with _guard:
        if _pulse is not None:
            _pulse[1].close()
        _pulse = None


def _write(run: Path, remote: Remote | None, beat: Beat) -> None:
    if remote is not None:
        remote.files.pipe_file(f"{remote.base}/{FOLDER}/{beat.name}.json", beat.text().encode())
    elif run.is_dir():
        write_text(run / FOLDER / f"{beat.name}.json", beat.text())


def workers(run: Path, remote: Remote | None) -> list[Beat]:
    """The last signs of life of the run's workers, by their names. What cannot be read is left out."""
    if remote is not None:
        texts = _stored(remote, [f"{remote.base}/{name}" for name in remote.list_prefix(FOLDER)])
    else:
        texts = [text for path in sorted((run / FOLDER).glob("*.json")) if (text := _bytes(path))]
    return [beat for text in texts if (beat := parse(text)) is not None]


def _stored(remote: Remote, paths: list[str]) -> list[bytes]:
    """The objects that are still there."""
    if not paths:
        return []
    try:
        found = remote.files.cat(paths, on_error="omit")
    except FileNotFoundError:
        return []
    return [found[path] for path in sorted(found)]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def parse(text: bytes) -> Beat | None:
    """The beat that a file holds; None if it holds none."""
    try:
        return Beat.of(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read(path: Path) -> Beat | None:
    """The beat in a file; None if there is none that can be read."""
    return parse(_bytes(path))


def remove_all(run: Path, remote: Remote | None) -> None:
    """Remove the signs of life of all workers. Call it only with the run directory's lock held."""
    if remote is not None:
        with suppress(OSError):  # a store that does not answer now: old signs count for nothing
            remote.refresh(FOLDER)
            remote.remove(remote.list_prefix(FOLDER))
    for path in (run / FOLDER).glob("*"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        (run / FOLDER).rmdir()
