"""Tasks of a later stream, begun by actors that a stream leaves idle, on a Ray that is played in this process."""

from __future__ import annotations

import pytest

from adatsq_pipe.cluster import actor_pool, spare_tasks
from adatsq_pipe.cluster.actor_pool import ActorPool, WorkerActor
from adatsq_pipe.cluster.errors import Stopped
from tests.cluster.test_actor_pool import Plan, Upper
from tests.support.fake_ray import FakeRay


class Later(Upper):
    """The worker of the later stream."""


class Last(Upper):
    """The worker of the stream after that."""


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()
    ray.install(monkeypatch, actor_pool, spare_tasks)
    return ray


@pytest.fixture
def pool(ray: FakeRay) -> ActorPool:
    return ActorPool([ray.remote(WorkerActor).remote() for _ in range(2)], 2)


@pytest.fixture
def plan(ray: FakeRay) -> Plan:
    return Plan(ray.clock)


def test_an_idle_actor_does_what_is_on_offer_and_the_stream_yields_its_own(
    ray: FakeRay, pool: ActorPool, plan: Plan
) -> None:
    pool.spare.offer(Later, plan, ["x", "y", "z"])
    ray.actors[0].hangs = {"a"}
    results = pool.stream(Upper, plan, ["a"])
    ray.clock.sleep = lambda seconds: ray.actors[0].hangs.clear()  # type: ignore[method-assign]
    assert list(results) == [("a", "A")]
    assert ray.sent[:2] == [(ray.actors[0], "a"), (ray.actors[1], "x")]
    assert plan.calls.count("x") == 1 and "a" in plan.calls


def test_no_actor_begins_one_while_tasks_wait(ray: FakeRay, pool: ActorPool, plan: Plan) -> None:
    pool.spare.offer(Later, plan, ["x"])
    assert dict(pool.stream(Upper, plan, list("abcdef"))) == {key: key.upper() for key in "abcdef"}
    assert sorted(task for _, task in ray.sent[:6]) == list("abcdef")


def test_the_stream_of_the_tasks_takes_over_what_is_in_progress(ray: FakeRay, pool: ActorPool, plan: Plan) -> None:
    ray.actors[1].hangs = {"x"}
    pool.spare.offer(Later, plan, ["x", "y", "z"])
    assert dict(pool.stream(Upper, plan, ["a"])) == {"a": "A"}
    assert [attempt.task for attempt in pool.spare.running.values()] == ["x"]
    assert dict(pool.stream(Upper, plan, list("bcd"))) == {"b": "B", "c": "C", "d": "D"}
    assert {actor for actor, task in ray.sent if task in "bcd"} == {ray.actors[0]}, "the other is busy"
    pool.spare.offer(Later, plan, [])
    ray.clock.sleep = lambda seconds: ray.actors[1].hangs.clear()  # type: ignore[method-assign]
    assert dict(pool.stream(Later, plan, ["x", "y", "z"])) == {"x": "X", "y": "Y", "z": "Z"}
    assert [task for _, task in ray.sent].count("x") == 1
    assert not pool.spare.running


def test_what_fails_is_left_to_the_stream_of_its_own(ray: FakeRay, pool: ActorPool, plan: Plan) -> None:
    plan.failures = {"x": 1}
    pool.spare.offer(Later, plan, ["x"])
    assert dict(pool.stream(Upper, plan, ["a"])) == {"a": "A"}
    assert dict(pool.stream(Upper, plan, list("bcdef"))) == {key: key.upper() for key in "bcdef"}
    assert plan.calls.count("x") == 1 and plan.failures == {"x": 0}
    assert dict(pool.stream(Later, plan, ["x"])) == {"x": "X"}


def test_an_actor_that_dies_of_one_works_again(ray: FakeRay, pool: ActorPool, plan: Plan) -> None:
    ray.actors[0].deaths["x"] = ray.actors[1].deaths["x"] = 1
    pool.spare.offer(Later, plan, ["x"])
    assert dict(pool.stream(Upper, plan, ["a"])) == {"a": "A"}
    assert dict(pool.stream(Upper, plan, list("bcdef"))) == {key: key.upper() for key in "bcdef"}
    died = ray.sent[[task for _, task in ray.sent].index("x")][0]
    assert died.deaths["x"] == 0 and pool.live == set(ray.actors)
    assert died in {actor for actor, task in ray.sent if task in "bcdef"}


def test_a_stop_lets_it_finish(ray: FakeRay, pool: ActorPool, plan: Plan) -> None:
    ray.actors[1].hangs = {"x"}
    pool.spare.offer(Later, plan, ["x", "y"])
    results = pool.stream(Upper, plan, ["a", "b"])
    assert next(results) == ("a", "A")
    while not pool.spare.running:
        next(results)
    pool.stop()
    ray.clock.sleep = lambda seconds: ray.actors[1].hangs.clear()  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        list(results)
    assert plan.calls.count("x") == 1 and "y" not in plan.calls and not pool.spare.running


def test_what_was_begun_of_an_earlier_offer_is_taken_over_too(ray: FakeRay, pool: ActorPool, plan: Plan) -> None:
    """The last stage's offer stands no more when the stream of its tasks starts: another has taken its place."""
    ray.actors[1].hangs = {"x"}
    pool.spare.offer(Later, plan, ["x", "y"])
    assert dict(pool.stream(Upper, plan, ["a"])) == {"a": "A"}
    pool.spare.offer(Last, plan, ["y"])
    ray.clock.sleep = lambda seconds: ray.actors[1].hangs.clear()  # type: ignore[method-assign]
    assert dict(pool.stream(Later, plan, ["x"])) == {"x": "X"}
    assert [task for _, task in ray.sent] == ["a", "x", "y"], "the other actor is idle, and y is on offer"


def test_a_stream_takes_over_nothing_of_another_worker_class(ray: FakeRay, pool: ActorPool, plan: Plan) -> None:
    ray.actors[1].hangs = {"x"}
    pool.spare.offer(Later, plan, ["x"])
    assert dict(pool.stream(Upper, plan, ["a"])) == {"a": "A"}
    assert dict(pool.stream(Last, plan, ["x"])) == {"x": "X"}
    assert [actor for actor, task in ray.sent if task == "x"] == [ray.actors[1], ray.actors[0]]
    assert [attempt.worker_class for attempt in pool.spare.running.values()] == [Later]


def test_a_task_that_waits_again_goes_to_no_actor_that_does_a_spare_one(
    ray: FakeRay, pool: ActorPool, plan: Plan
) -> None:
    ray.actors[1].hangs = {"x"}
    plan.failures = {"a": 1}
    pool.spare.offer(Later, plan, ["x"])
    assert dict(pool.stream(Upper, plan, ["a"])) == {"a": "A"}
    assert ray.sent == [(ray.actors[0], "a"), (ray.actors[1], "x"), (ray.actors[0], "a")]
