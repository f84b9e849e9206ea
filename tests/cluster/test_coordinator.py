"""The coordinator, on a Ray that is played in this process: deaths, stops and progress of a search."""

from __future__ import annotations

from pathlib import Path

import pytest

from adatsq_pipe.cluster import actor_pool, coordinator
from adatsq_pipe.cluster.actor_pool import ActorPool, WorkerActor
from adatsq_pipe.cluster.coordinator import MAX_DEATHS, Coordinator
from adatsq_pipe.cluster.errors import Stopped, WorkerLost
from tests.support.fake_ray import FakeActor, FakeRay
from tests.support.scripted_workers import Script, failing_search, search


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()
    ray.install(monkeypatch, actor_pool, coordinator)
    return ray


@pytest.fixture
def pool(ray: FakeRay) -> ActorPool:
    return ActorPool([ray.remote(WorkerActor).remote()], 2)


def _coordinator(ray: FakeRay) -> tuple[Coordinator, FakeActor]:
    return Coordinator("test"), ray.actors[-1]


def test_the_last_progress_is_reported_and_the_actor_ended(ray: FakeRay, pool: ActorPool, tmp_path: Path) -> None:
    handle, actor = _coordinator(ray)
    actor.busy_waits, reports = 2, list[tuple[int, int]]()
    handle.run(search, pool, Script(str(tmp_path)), lambda *progress: reports.append(progress), lambda: False)
    assert reports == [(0, 0), (0, 0), (4, 4)]
    assert ray.killed == [actor] and (tmp_path / "result").read_text() == "AX,BX"


@pytest.mark.parametrize("deaths", [1, MAX_DEATHS - 1])
def test_a_search_is_run_again_when_its_process_died(
    ray: FakeRay, pool: ActorPool, tmp_path: Path, deaths: int
) -> None:
    handle, actor = _coordinator(ray)
    actor.deaths[""], actor.dead_pings = deaths, 3
    handle.run(search, pool, Script(str(tmp_path)), lambda *progress: None, lambda: False)
    assert (tmp_path / "result").read_text() == "AX,BX"


def test_a_coordinator_that_always_dies_is_given_up(ray: FakeRay, pool: ActorPool, tmp_path: Path) -> None:
    handle, actor = _coordinator(ray)
    actor.deaths[""] = MAX_DEATHS
    with pytest.raises(WorkerLost, match="died 10 times; finished levels are kept"):
        handle.run(search, pool, Script(str(tmp_path)), lambda *progress: None, lambda: False)
    assert actor.deaths[""] == 0 and ray.killed == [actor]


def test_the_error_of_a_search_is_not_tried_again(ray: FakeRay, pool: ActorPool, tmp_path: Path) -> None:
    handle, actor = _coordinator(ray)
    with pytest.raises(ValueError, match=r"^no good: the search$"):
        handle.run(failing_search, pool, Script(str(tmp_path)), lambda *progress: None, lambda: False)
    assert ray.killed == [actor]


def test_a_stop_during_the_search_is_passed_on(ray: FakeRay, pool: ActorPool, tmp_path: Path) -> None:
    handle, actor = _coordinator(ray)
    actor.busy_waits, answers = 3, iter([False, False, True, True, True])
    stops = list[bool]()
    actor.instance = actor.make()
    actor.instance.stop = lambda: stops.append(True)
    handle.run(search, pool, Script(str(tmp_path)), lambda *progress: None, lambda: next(answers))
    assert stops == [True], "once"


def test_the_actor_passes_a_stop_on_to_the_pool(ray: FakeRay, pool: ActorPool, tmp_path: Path) -> None:
    actor = coordinator.CoordinatorActor([])
    actor.stop()

    def stopping_search(pool: ActorPool, script: Script, report: coordinator.Report) -> None:
        actor.stop()
        search(pool, script, report)

    with pytest.raises(Stopped):
        actor.run(stopping_search, pool, Script(str(tmp_path)))
    assert ray.sent == []


def test_a_stop_while_it_comes_up_ends_the_wait(ray: FakeRay, pool: ActorPool, tmp_path: Path) -> None:
    handle, actor = _coordinator(ray)
    actor.silent = True
    with pytest.raises(Stopped):
        handle.run(search, pool, Script(str(tmp_path)), lambda *progress: None, lambda: ray.clock.now > 3)
    assert ray.killed == [actor]


def test_a_coordinator_that_never_comes_up_is_given_up_after_ten_minutes(
    ray: FakeRay, pool: ActorPool, tmp_path: Path
) -> None:
    handle, actor = _coordinator(ray)
    actor.silent = True
    with pytest.raises(WorkerLost, match="did not come up within 600 s; run again to resume"):
        handle.run(search, pool, Script(str(tmp_path)), lambda *progress: None, lambda: False)
    assert 600 < ray.clock.now < 602
