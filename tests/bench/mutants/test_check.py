"""The list of faults fits the code: each fault's old line is there once, so that the list cannot go stale."""

from __future__ import annotations

import pytest

from tests.bench.mutants.check import FAULTS, stale
from tests.bench.mutants.fault import Fault


def test_every_fault_fits_the_code() -> None:
    assert [why for fault in FAULTS if (why := stale(fault))] == []


def test_every_fault_changes_something_and_stands_there_once() -> None:
    assert all(fault.old != fault.new for fault in FAULTS)
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(file="stages/none.py", old="a", new="b", tests=()), "stages/none.py is gone"),
        (Fault(file="storage/files.py", old="no such line", new="b", tests=()), "'no such line' 0 times"),
        (Fault(file="storage/files.py", old="import ", new="b", tests=()), "times"),
        (Fault(file="storage/files.py", old="import ", new="b", tests=("tests/none.py",)), "tests/none.py is gone"),
    ],
)
def test_a_fault_that_no_longer_fits_is_named(fault: Fault, words: str) -> None:
    assert words in stale(fault)
