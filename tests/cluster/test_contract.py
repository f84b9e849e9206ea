"""One contract for both executors; and what only Ray can suffer: dead workers, fractions of GPUs, dead addresses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.cluster import actor_pool, coordinator
from adatsq_pipe.cluster.errors import ClusterUnreachable, Stopped, TaskFailed, WorkerLost
from adatsq_pipe.cluster.inline_executor import InlineExecutor
from adatsq_pipe.cluster.ray_executor import RayExecutor, connect
from adatsq_pipe.cluster.resources import Resources
from adatsq_pipe.stages.base.micro_batch import OutOfMemory
from tests.cluster.fakes import Fatal, Memory, NotRetryable, Recorder, Script, Summer, drive, dying_drive, failing_drive


@pytest.fixture(scope="module")
def ray_pool() -> Iterator[RayExecutor]:
    """Two workers that hold half of a (fake) GPU each."""
    pool = RayExecutor(Resources(workers=2, gpus=1, gpus_per_worker=0.5, retries=2), "contract")
    yield pool
    pool.close()


@pytest.fixture(params=["inline", pytest.param("ray", marks=pytest.mark.run)])
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = InlineExecutor() if request.param == "inline" else request.getfixturevalue("ray_pool")
    yield made
    made._stopping = False
    if isinstance(made, RayExecutor):
        made._pool.stopping = False


def _calls(folder: Path, key: str) -> int:
    path = folder / f"call-{key}"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_every_key_once_with_its_result(executor: Any, tmp_path: Path) -> None:
    keys = [f"k{i}" for i in range(7)]
    assert dict(executor.stream(Recorder, Script(str(tmp_path)), keys)) == {k: k.upper() for k in keys}
    assert [_calls(tmp_path, k) for k in keys] == [1] * 7


def test_no_keys_open_no_worker(executor: Any, tmp_path: Path) -> None:
    assert list(executor.stream(Recorder, Script(str(tmp_path)), [])) == []
    assert not (tmp_path / "opened").exists()


def test_a_worker_stays_open_between_streams(executor: Any, tmp_path: Path) -> None:
    for keys in (["a", "b", "c"], ["d", "e", "f"]):
        list(executor.stream(Recorder, Script(str(tmp_path)), keys))
    opened = (tmp_path / "opened").read_text().splitlines()
    assert len(opened) == len(set(opened)) <= 2


def test_a_unit_that_fails_is_named_after_the_others_are_done(executor: Any, tmp_path: Path) -> None:
    got: list[str] = []
    with pytest.raises(TaskFailed, match=r"'b' failed .*ValueError: no good: b") as failed:
        got += [key for key, _ in executor.stream(Recorder, Script(str(tmp_path), fail=("b",)), list("abcdef"))]
    assert failed.value.task == "b" and 'raise ValueError(f"no good: {key}")' in failed.value.traceback
    assert [_calls(tmp_path, key) for key in "acdef"] == [1] * 5
    assert _calls(tmp_path, "b") == (1 if isinstance(executor, InlineExecutor) else 3)


def test_an_error_that_speaks_to_the_user_arrives_as_it_was_raised(executor: Any, tmp_path: Path) -> None:
    with pytest.raises(NotRetryable, match="never: b"):
        list(executor.stream(Recorder, Script(str(tmp_path), permanent=("b",)), list("abc")))
    assert [_calls(tmp_path, key) for key in "abc"] == [1, 1, 1]


def test_a_fatal_error_ends_the_stream(executor: Any, tmp_path: Path) -> None:
    keys = [f"k{i}" for i in range(20)]
    with pytest.raises(Fatal, match="all is lost"):
        list(executor.stream(Recorder, Script(str(tmp_path), fatal=("k0",)), keys))
    assert sum(_calls(tmp_path, key) for key in keys) < 10


def test_where_all_fail_the_rest_is_not_tried(executor: Any, tmp_path: Path) -> None:
    keys = [f"k{i:02}" for i in range(20)]
    with pytest.raises(TaskFailed, match="and so did"):
        list(executor.stream(Recorder, Script(str(tmp_path), fail=tuple(keys)), keys))
    assert sum(_calls(tmp_path, key) > 0 for key in keys) < 10


def test_a_unit_that_does_not_fit_is_halved_until_it_does(executor: Any, tmp_path: Path) -> None:
    keys = ["a", "bb", "ccc"]
    got = dict(executor.stream(Summer, Memory(str(tmp_path), rows=7, fit=2), keys))
    for key in keys:
        sums, narrowed = got[key]
        assert sums == [float(len(key) * (4 * row + 1)) for row in range(7)], "the parts make the whole"
        assert narrowed == {"from": 7, "to": 2}
    tried = [int(line) for line in (tmp_path / "forwards").read_text().splitlines()]
    opened = 1 if isinstance(executor, InlineExecutor) else 2
    assert 1 <= tried.count(7) <= opened and tried.count(4) == tried.count(7), "a worker that halved stays so"


def test_what_fits_is_not_cut(executor: Any, tmp_path: Path) -> None:
    got = dict(executor.stream(Summer, Memory(str(tmp_path), rows=7, fit=7), ["a"]))
    assert got["a"] == ([float(4 * row + 1) for row in range(7)], None)
    assert (tmp_path / "forwards").read_text() == "7\n"


def test_what_does_not_fit_one_by_one_is_one_line(executor: Any, tmp_path: Path) -> None:
    said = r"unit 'a' does not fit with one sample at a time \(CUDA out of memory. Tried to allocate 2.00 GiB.*; give"
    with pytest.raises(OutOfMemory, match=said) as failed:
        list(executor.stream(Summer, Memory(str(tmp_path), rows=3, fit=0), ["a"]))
    assert "\n" not in str(failed.value)
    assert (tmp_path / "forwards").read_text().split() == ["3", "2", "1"]


@pytest.mark.run
def test_an_error_that_passes_costs_one_more_try(ray_pool: RayExecutor, tmp_path: Path) -> None:
    script = Script(str(tmp_path), fail=("b",), fails=1)
    assert dict(ray_pool.stream(Recorder, script, ["a", "b", "c"])) == {"a": "A", "b": "B", "c": "C"}
    assert _calls(tmp_path, "b") == 2


@pytest.mark.run
def test_a_straggler_is_overtaken(ray_pool: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_pool, "STRAGGLER_SECONDS", 1.0)
    got = dict(ray_pool.stream(Recorder, Script(str(tmp_path), slow=("b",)), list("abcdef")))
    assert got == {key: key.upper() for key in "abcdef"} and _calls(tmp_path, "b") == 2
    again = dict(ray_pool.stream(Recorder, Script(str(tmp_path)), list("gh")))
    assert again == {"g": "G", "h": "H"}, "both actors work again"


def test_a_stop_lets_the_unit_in_hand_finish(executor: Any, tmp_path: Path) -> None:
    got: list[str] = []

    def consume() -> None:
        for key, _ in executor.stream(Recorder, Script(str(tmp_path)), [f"k{i}" for i in range(20)]):
            got.append(key)
            executor.stop()

    with pytest.raises(Stopped):
        consume()
    assert 1 <= len(got) <= 3
    assert sum(_calls(tmp_path, f"k{i}") for i in range(20)) == len(got)


def test_a_drive_dispatches_and_reports(executor: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    executor.coordinate(drive, Script(str(tmp_path)), lambda done, total: seen.append((done, total)))
    assert (tmp_path / "result").read_text() == "AX,BX" and seen[-1] == (4, 4)


def test_a_failing_drive_says_why(executor: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the drive"):
        executor.coordinate(failing_drive, Script(str(tmp_path)), lambda done, total: None)


@pytest.mark.run
def test_a_director_that_comes_up_late_is_waited_for(
    ray_pool: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "MAX_DEATHS", 2)
    late = coordinator.Coordinator("late", ["tests.cluster.late"])
    script = Script(str(tmp_path), kills=1)
    late.run(dying_drive, ray_pool._pool, script, lambda done, total: None, lambda: False)
    assert (tmp_path / "result").read_text() == "AX,BX"


@pytest.mark.run
def test_a_director_that_cannot_start_says_why(ray_pool: RayExecutor, tmp_path: Path) -> None:
    broken = coordinator.Coordinator("broken", ["no_such_module"])
    with pytest.raises(WorkerLost, match=r"cannot start: (?s:.*)no_such_module"):
        broken.run(drive, ray_pool._pool, Script(str(tmp_path)), lambda done, total: None, lambda: False)


@pytest.mark.run
def test_a_director_that_always_dies_is_given_up(
    ray_pool: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "MAX_DEATHS", 1)
    with pytest.raises(WorkerLost, match="died 1 times"):
        ray_pool.coordinate(dying_drive, Script(str(tmp_path), kills=99), lambda done, total: None)
    assert len((tmp_path / "began").read_text().splitlines()) == 1


@pytest.mark.run
def test_a_dead_workers_key_is_done_by_another(ray_pool: RayExecutor, tmp_path: Path) -> None:
    script = Script(str(tmp_path), kill=("b",))
    assert dict(ray_pool.stream(Recorder, script, ["a", "b", "c"])) == {"a": "A", "b": "B", "c": "C"}
    assert _calls(tmp_path, "b") == 2


@pytest.mark.run
def test_a_key_that_always_kills_is_named(ray_pool: RayExecutor, tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match=r"'b' failed 3 times: WorkerLost: .* died"):
        list(ray_pool.stream(Recorder, Script(str(tmp_path), kill=("b",), kills=99), ["b"]))


@pytest.mark.run
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_dead_address_is_one_line(address: str) -> None:
    with pytest.raises(ClusterUnreachable, match=address):
        connect(Resources(address=address))


def test_width_follows_cpus_or_gpus() -> None:
    assert Resources(workers=5).local_workers == 5
    assert Resources(gpus=2, gpus_per_worker=0.5).local_workers == 4
    assert Resources().local_workers >= 1
    assert Resources(cpus_per_worker=2).workers_on({"CPU": 9.0}) == 4
    assert Resources(gpus_per_worker=0.5).workers_on({"CPU": 64.0, "GPU": 3.0}) == 6
    assert Resources(gpus_per_worker=1).workers_on({"CPU": 64.0}) == 1
