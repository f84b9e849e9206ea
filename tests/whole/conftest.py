"""A run that nothing happened to, and processes that do not outlive their test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.whole import harness


@pytest.fixture(scope="session")
def undisturbed(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to, in one process."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = harness.run(*harness.tiny(folder, tiny_flux))
    assert done.returncode == 0, done.stderr
    for named in ("model", "summary", "pictures", "next"):
        assert any(line.startswith(named) for line in done.stdout.splitlines()), done.stdout
    return folder


@pytest.fixture
def started() -> Iterator[list[harness.Started]]:
    processes: list[harness.Started] = []
    yield processes
    for process in processes:
        process.kill()
