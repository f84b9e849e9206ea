"""Units are committed by who computed them, failures are recorded, and a finished stage names every unit's digest."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.run_settings import ModelRef, RunSettings
from adatsq_pipe.stages.base.units import complete, fan_out, shards, unit_of
from adatsq_pipe.storage.errors import DamagedUnit

SHA = "ab" * 32


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(
        settings=RunSettings([]), run=str(tmp_path), model=ModelRef(path=tmp_path), fingerprints={"capture": SHA}
    )


def _commit(context: Context, key: str, value: object = None) -> None:
    with unit_of(context, "capture", key) as unit:
        (unit.folder / "bytes").write_bytes(key.encode())
        unit.value = value


def _digest(key: str, value: object = None) -> str:
    sha = hashlib.sha256(key.encode()).hexdigest()
    text = json.dumps({"files": {"bytes": sha}, "value": value}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_finished_stage_names_the_digest_of_every_unit(context: Context, tmp_path: Path) -> None:
    for key in ("b", "a/0"):
        _commit(context, key)
    complete(context, "capture")
    marker = tmp_path / "capture" / SHA[:16] / "markers" / "complete.json"
    assert json.loads(marker.read_text())["value"] == {"a/0": _digest("a/0"), "b": _digest("b")}
    before = marker.stat().st_ino
    complete(context, "capture")
    assert marker.stat().st_ino == before


def test_a_unit_is_committed_when_its_body_ends(context: Context) -> None:
    manifest = context.manifest("capture")
    with unit_of(context, "capture", "a") as unit:
        unit.value, unit.calls, unit.elsewhere = {"x": 1}, 3.0, 1000.0
        assert not manifest.done("a")
    marker = manifest.read("a")
    assert marker.value == {"x": 1} and marker.calls == 3.0
    assert 1000.0 <= marker.seconds["total"] < 1900.0
    assert set(marker.seconds) == {"model", "algebra", "total", "calls", "cpu", "resident"}


def test_a_marker_says_how_much_main_memory_and_cpu_its_unit_took(context: Context) -> None:
    with unit_of(context, "capture", "before"):
        pass
    with unit_of(context, "capture", "large"):
        block = bytearray(b"x") * 200_000_000
        total = sum(range(3_000_000))
    del block
    for unit in ("after", "small"):  # the unit after begins where the large one ends
        with unit_of(context, "capture", unit):
            pass
    before, large, small = (context.manifest("capture").read(unit) for unit in ("before", "large", "small"))
    assert total and large.seconds["cpu"] > 0.01 > before.seconds["cpu"]
    assert large.resident > before.resident + 150_000_000 and large.digest == small.digest
    if sys.platform == "linux":
        assert small.resident < large.resident - 150_000_000, "a peak is the unit's own"


def test_a_unit_that_fails_is_not_committed_and_says_why(context: Context) -> None:
    manifest = context.manifest("capture")
    with pytest.raises(ValueError, match="wrong"), unit_of(context, "capture", "a"):
        raise ValueError("wrong")
    assert not manifest.done("a") and manifest.failures()["a"].splitlines()[-1] == "ValueError: wrong"


def test_a_unit_that_reads_a_damaged_one_has_not_failed_itself(context: Context) -> None:
    with pytest.raises(DamagedUnit), unit_of(context, "capture", "a"):
        raise DamagedUnit("capture", "b", "gone")
    assert context.manifest("capture").failures() == {} and not context.manifest("capture").done("a")


class _Worker:
    stage = "capture"


class _Executor:
    keys: Sequence[str] = ()

    def stream(self, worker: type[Any], context: Context, keys: Sequence[str]) -> Iterator[tuple[str, None]]:
        self.keys = keys
        yield from ((key, None) for key in keys)


def test_only_units_without_a_marker_are_computed(context: Context) -> None:
    _commit(context, "b")
    executor, reports = _Executor(), list[tuple[int, int]]()
    fan_out(context, executor, _Worker, ["c", "b", "a"], lambda done, of: reports.append((done, of)))  # type: ignore[arg-type]
    assert executor.keys == ["c", "a"] and reports == [(1, 3), (2, 3), (3, 3)]


def test_a_task_of_several_units_is_done_if_one_is_missing_and_counts_those(context: Context) -> None:
    for done in ("b", "c", "d"):
        _commit(context, done)
    executor, reports = _Executor(), list[tuple[int, int]]()
    tasks = {"first": ["a", "b"], "second": ["c", "d"], "third": ["e", "f"]}
    fan_out(context, executor, _Worker, tasks, lambda done, of: reports.append((done, of)))  # type: ignore[arg-type]
    assert executor.keys == ["first", "third"] and reports == [(3, 6), (4, 6), (6, 6)]


def test_shards_cover_all_items_once() -> None:
    assert shards(5, 2) == [range(0, 2), range(2, 4), range(4, 5)]
    assert shards(4, 2) == [range(0, 2), range(2, 4)] and shards(0, 2) == []
