"""A fault: one line of the source changed, and the tests that should notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fault:
    """In `file`, `old` (which occurs there exactly once) is replaced by `new`; `tests` are files of fast tests."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip()!r} -> {self.new.strip()!r}"


def faults(file: str, tests: str, *changes: tuple[str, str]) -> list[Fault]:
    """The faults (old, new) of one file; `tests` names test files, separated by spaces."""
    return [Fault(file=file, old=old, new=new, tests=tuple(tests.split())) for old, new in changes]
