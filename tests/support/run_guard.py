"""Only a test marked `run` starts the command line, Ray or another Python: so that the fast tests stay fast."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

COMMANDS = ("adatsq_pipe.pipeline.commands.cli", "gcs_server", "raylet", "ray.scripts")
"""What a process of the command line or of Ray has in its arguments."""


class RunGuard:
    """Knows the test under way; an audit hook sees each process that it starts."""

    def __init__(self) -> None:
        self.item: pytest.Item | None = None
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[object, ...]) -> None:
        if event != "subprocess.Popen" or self.item is None:
            return
        command = arguments[1]
        words = [command] if isinstance(command, str | bytes) else list(command or ())  # type: ignore[call-overload]
        texts = [word.decode() if isinstance(word, bytes) else str(word) for word in words]
        for name in COMMANDS:
            if name in " ".join(texts):
                self.require(name)
        if texts and Path(texts[0]).name.startswith("python"):
            self.require("another Python")

    def require(self, what: str) -> None:
        """Fail the test under way, unless it is marked `run`."""
        if self.item is not None and self.item.get_closest_marker("run") is None:
            pytest.fail(f"{self.item.nodeid} starts {what}: mark it with @pytest.mark.run", pytrace=False)


guard = RunGuard()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> object:
    guard.item = item
    try:
        return (yield)
    finally:
        guard.item = None
