"""The Ray executor obeys the contract on a real Ray, and survives what only Ray can suffer: dead processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adatsq_pipe.cluster import actor_pool, coordinator, ray_executor
from adatsq_pipe.cluster.coordinator import Coordinator
from adatsq_pipe.cluster.errors import ClusterUnreachable, Stopped, TaskFailed, WorkerLost
from adatsq_pipe.cluster.ray_executor import RayExecutor, connect, gpus_of
from adatsq_pipe.cluster.resources import Resources
from tests.support.executor_contract import ExecutorContract
from tests.support.fake_ray import FakeRay
from tests.support.scripted_workers import Recorder, Script, dying_search, search


@pytest.fixture(scope="module")
def shared_executor() -> Iterator[RayExecutor]:
    """Two workers that hold half of a (fake) GPU each."""
    executor = RayExecutor(Resources(workers=2, gpus=1, gpus_per_worker=0.5, retries=2), "contract")
    yield executor
    executor.close()


@pytest.fixture(name="executor")
def running_executor(shared_executor: RayExecutor) -> Iterator[RayExecutor]:
    yield shared_executor
    shared_executor._stopping = shared_executor._pool.stopping = False


def _ignore(done: int, total: int) -> None: ...


@pytest.mark.run
class TestRayExecutor(ExecutorContract):
    tries = 3
    processes = 2

    @pytest.fixture
    def executor(self, executor: RayExecutor) -> RayExecutor:
        return executor


@pytest.mark.run
def test_a_straggler_is_overtaken_and_its_actor_works_again(
    executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_pool, "STRAGGLER_SECONDS", 1.0)
    script = Script(str(tmp_path), slow=("b",))
    assert dict(executor.stream(Recorder, script, list("abcdef"))) == {key: key.upper() for key in "abcdef"}
    assert script.calls("b") == 2
    assert dict(executor.stream(Recorder, script, list("gh"))) == {"g": "G", "h": "H"}


@pytest.mark.run
def test_the_task_of_a_dead_worker_is_tried_again_and_named_if_it_always_kills(
    executor: RayExecutor, tmp_path: Path
) -> None:
    once, always = Script(str(tmp_path), kill=("b",)), Script(str(tmp_path), kill=("d",), kills=99)
    assert dict(executor.stream(Recorder, once, list("abc"))) == {"a": "A", "b": "B", "c": "C"}
    assert once.calls("b") == 2
    with pytest.raises(TaskFailed, match=r"'d' failed 3 times: WorkerLost: .* died"):
        list(executor.stream(Recorder, always, ["d"]))


@pytest.mark.run
def test_a_coordinator_that_comes_up_late_and_dies_once_ends_its_search(
    executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "MAX_DEATHS", 2)
    late = Coordinator("late", ["tests.support.slow_import"])
    late.run(dying_search, executor._pool, Script(str(tmp_path), kills=1), _ignore, lambda: False)
    assert (tmp_path / "result").read_text() == "AX,BX"


@pytest.mark.run
def test_a_coordinator_that_cannot_start_says_why(executor: RayExecutor, tmp_path: Path) -> None:
    broken = Coordinator("broken", ["no_such_module"])
    with pytest.raises(WorkerLost, match=r"cannot start: (?s:.*)no_such_module"):
        broken.run(search, executor._pool, Script(str(tmp_path)), _ignore, lambda: False)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_dead_address_is_refused_in_one_line(address: str) -> None:
    with pytest.raises(ClusterUnreachable, match=f"answers at '{address}' .Connection refused") as error:
        connect(Resources(address=address))
    assert "\n" not in str(error.value)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay(cluster={"CPU": 6.0, "GPU": 2.0, "memory": 9.0})
    fake.install(monkeypatch, actor_pool, coordinator, ray_executor)
    return fake


def test_workers_ask_for_their_share_of_cpus_and_gpus(fake: FakeRay) -> None:
    RayExecutor(Resources(workers=3, cpus_per_worker=2.0, gpus=2, gpus_per_worker=0.5), "shares")
    options = {"num_cpus": 2.0, "num_gpus": 0.5, "max_restarts": -1}
    assert [actor.options for actor in fake.actors] == [options] * 3
    assert fake.init_options["num_cpus"] == 3 * 2, "Ray starts a process for each beforehand"
    assert fake.init_options["num_gpus"] == 2 and fake.init_options["address"] == "local"


def test_a_cluster_is_filled_and_grows_with_its_nodes(fake: FakeRay) -> None:
    executor = RayExecutor(Resources(address="auto", gpus_per_worker=0.5), "growth")
    assert len(fake.actors) == 4, "two GPUs, half of one each"
    fake.cluster["GPU"] = 3.0
    assert len(executor._new_actors()) == 2
    assert fake.init_options["address"] == "auto"


def test_a_running_cluster_says_how_many_gpus_it_has(fake: FakeRay) -> None:
    assert gpus_of("auto") == 2 and fake.init_options["address"] == "auto"
    fake.cluster.pop("GPU")
    assert gpus_of("auto") == 0


def test_a_number_of_workers_holds_on_any_cluster(fake: FakeRay) -> None:
    executor = RayExecutor(Resources(address="auto", workers=3, gpus_per_worker=0.5), "fixed")
    assert len(fake.actors) == 3 and executor._new_actors() == []


def test_the_first_result_starts_the_one_coordinator_of_a_cluster(fake: FakeRay, tmp_path: Path) -> None:
    executor = RayExecutor(Resources(address="auto", workers=1), "prepared", ["json"])
    results = executor.stream(Recorder, Script(str(tmp_path)), ["a", "b"])
    assert len(fake.actors) == 1
    next(results)
    assert [actor.options.get("name") for actor in fake.actors] == [None, "adatsq-coordinator-prepared"]
    assert list(results) == [("b", "B")] and executor.live_workers == 1
    executor.coordinate(search, Script(str(tmp_path)), _ignore)
    assert len(fake.actors) == 2 and fake.killed == [fake.actors[1]]


def test_a_search_on_this_machine_runs_in_this_process(fake: FakeRay, tmp_path: Path) -> None:
    executor, reports = RayExecutor(Resources(workers=1), "here", ["json"]), list[tuple[int, int]]()
    assert list(executor.stream(Recorder, Script(str(tmp_path)), ["a"])) == [("a", "A")]
    executor.coordinate(search, Script(str(tmp_path)), lambda *progress: reports.append(progress))
    assert (tmp_path / "result").read_text() == "AX,BX" and reports[-1] == (4, 4)
    assert len(fake.actors) == 1, "the worker alone"


@pytest.mark.parametrize("address", ["local", "auto"])
def test_after_a_stop_no_task_is_sent_and_no_search_begins(fake: FakeRay, tmp_path: Path, address: str) -> None:
    executor = RayExecutor(Resources(address=address, workers=1), "stop")
    executor.stop()
    with pytest.raises(Stopped):
        list(executor.stream(Recorder, Script(str(tmp_path)), ["a"]))
    with pytest.raises(Stopped):
        executor.coordinate(dying_search, Script(str(tmp_path), kills=0), _ignore)
    assert fake.sent == [] and not (tmp_path / "searches").exists()
