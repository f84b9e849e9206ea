"""The list of faults, and where it no longer fits the code."""

from __future__ import annotations

from pathlib import Path

from tests.bench.mutants import (
    faults_effects,
    faults_input,
    faults_numerics,
    faults_rooms,
    faults_runtime,
    faults_stages,
    faults_storage,
)
from tests.bench.mutants.fault import Fault

ROOT = Path(__file__).parents[3]
FAULTS = [
    *faults_stages.FAULTS,
    *faults_effects.FAULTS,
    *faults_input.FAULTS,
    *faults_numerics.FAULTS,
    *faults_runtime.FAULTS,
    *faults_rooms.FAULTS,
    *faults_storage.FAULTS,
]


def stale(fault: Fault) -> str:
    """Why the fault does not fit the code any more; empty if it does."""
    path = ROOT / fault.file
    if not path.is_file():
        return f"{fault.file} is gone"
    if missing := [name for name in fault.tests if not (ROOT / name).is_file()]:
        return f"{missing[0]} is gone"
    count = path.read_text().count(fault.old)
    return "" if count == 1 else f"{fault.file} has {fault.old!r} {count} times"
