"""The dispatch of tasks, on a Ray that is played in this process: who gets what, what is tried again, what is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from adatsq_pipe.cluster import actor_pool
from adatsq_pipe.cluster.actor_pool import ActorPool, WorkerActor
from adatsq_pipe.cluster.errors import Stopped, TaskFailed, WorkerLost
from tests.support.fake_ray import Clock, Endless, FakeActor, FakeRay
from tests.support.scripted_workers import Fatal, NotRetryable


@dataclass(eq=False)
class Plan:
    """What the workers of a test do: `failures` counts down, `duration` is of the fake clock."""

    clock: Clock
    failures: dict[str, int] = field(default_factory=dict)
    duration: float = 0.0
    error: Exception | None = None
    calls: list[str] = field(default_factory=list)


class Upper:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self, key: str) -> str:
        self.plan.calls.append(key)
        self.plan.clock.now += self.plan.duration
        if self.plan.failures.get(key, 0):
            self.plan.failures[key] -= 1
            raise self.plan.error or ValueError(f"no good: {key}")
        return key.upper()


class Deep(Upper):
    queue_depth = 2


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay(cluster={"CPU": 4.0, "GPU": 1.0})
    ray.install(monkeypatch, actor_pool)
    return ray


@pytest.fixture
def plan(ray: FakeRay) -> Plan:
    return Plan(ray.clock)


def _pool(ray: FakeRay, count: int = 2, retries: int = 2) -> ActorPool:
    return ActorPool([ray.remote(WorkerActor).remote() for _ in range(count)], retries)


def _tasks_of(ray: FakeRay, actor: FakeActor) -> list[str]:
    return [task for receiver, task in ray.sent if receiver is actor]


def test_every_task_is_sent_once_and_every_result_returned(ray: FakeRay, plan: Plan) -> None:
    pool = _pool(ray)
    assert sorted(pool.stream(Upper, plan, list("abcde"))) == [(key, key.upper()) for key in "abcde"]
    assert sorted(task for _, task in ray.sent) == list("abcde") == sorted(plan.calls)
    assert all(_tasks_of(ray, actor) for actor in ray.actors), "both work"
    assert [actor.deepest for actor in ray.actors] == [1, 1]


def test_a_deep_queue_holds_a_second_task_at_each_actor(ray: FakeRay, plan: Plan) -> None:
    assert len(list(_pool(ray).stream(Deep, plan, list("abcdefgh")))) == 8
    assert [actor.deepest for actor in ray.actors] == [2, 2]


def test_tasks_go_to_the_least_busy_actor(ray: FakeRay, plan: Plan) -> None:
    pool = _pool(ray)
    list(pool.stream(Deep, plan, list("abcd")))
    ray.sent = []
    assert len(list(pool.stream(Deep, plan, list("ef")))) == 2
    assert [len(_tasks_of(ray, actor)) for actor in ray.actors] == [1, 1]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_task_that_always_fails_is_tried_once_more_than_retries(ray: FakeRay, plan: Plan, retries: int) -> None:
    plan.failures = {"b": 99}
    with pytest.raises(TaskFailed, match="'b'") as caught:
        list(_pool(ray, retries=retries).stream(Upper, plan, list("abc")))
    assert caught.value.tries == plan.calls.count("b") == 1 + retries
    assert "traceback of ValueError('no good: b')" in caught.value.traceback


def test_a_failed_task_is_tried_again_on_another_actor(ray: FakeRay, plan: Plan) -> None:
    plan.failures = {"a": 1}
    pool = _pool(ray)
    assert list(pool.stream(Upper, plan, ["a"])) == [("a", "A")]
    assert [actor for actor, _ in ray.sent] == ray.actors


def test_a_failed_task_waits_at_a_busier_actor_rather_than_where_it_failed(ray: FakeRay, plan: Plan) -> None:
    pool = _pool(ray)
    list(pool.stream(Deep, plan, list("wxyz")))
    ray.sent, ray.actors[1].hangs, plan.failures = [], {"h"}, {"a": 1}
    with pytest.raises(Endless):
        list(pool.stream(Deep, plan, ["a", "h"]))
    first, second = ray.actors
    assert ray.sent[:3] == [(first, "a"), (second, "h"), (second, "a")]


@pytest.mark.parametrize("kind", [NotRetryable, Fatal])
def test_the_attributes_of_an_error_count_behind_rays_wrapper(ray: FakeRay, plan: Plan, kind: type[Exception]) -> None:
    plan.failures, plan.error = {"a": 99}, kind("final")
    with pytest.raises(kind, match=r"^final$"):
        list(_pool(ray).stream(Upper, plan, ["a"]))
    assert plan.calls == ["a"]


def test_a_dead_actors_tasks_are_not_lost(ray: FakeRay, plan: Plan) -> None:
    pool = _pool(ray, count=1)
    ray.actors[0].deaths["a"] = 1
    assert sorted(pool.stream(Deep, plan, list("abc"))) == [("a", "A"), ("b", "B"), ("c", "C")]
    assert [task for _, task in ray.sent].count("a") == 2
    assert [task for _, task in ray.sent].count("b") == 2, "it waited behind the one that died"
    assert plan.calls.count("b") == 1


def test_a_task_that_always_kills_is_given_up(ray: FakeRay, plan: Plan) -> None:
    pool = _pool(ray, retries=1)
    for actor in ray.actors:
        actor.deaths["a"] = 99
    with pytest.raises(TaskFailed, match=r"'a' failed 2 times: WorkerLost: the worker process died .*unit 'a'"):
        list(pool.stream(Upper, plan, ["a", "b"]))
    assert plan.calls == ["b"]


def test_an_actor_that_does_not_answer_gets_nothing(ray: FakeRay, plan: Plan) -> None:
    pool = _pool(ray)
    ray.actors[0].silent = True
    assert len(list(pool.stream(Upper, plan, list("abc")))) == 3
    assert _tasks_of(ray, ray.actors[0]) == [] and pool.live == {ray.actors[1]}


def test_an_actor_whose_node_is_gone_gets_nothing_in_the_next_stream(ray: FakeRay, plan: Plan) -> None:
    pool = _pool(ray)
    list(pool.stream(Upper, plan, list("abcd")))
    assert pool.live == set(ray.actors)
    ray.actors[0].silent, ray.sent = True, []
    assert len(list(pool.stream(Upper, plan, list("efg")))) == 3
    assert _tasks_of(ray, ray.actors[0]) == [] and pool.live == {ray.actors[1]}


def test_an_actor_that_died_is_pinged_until_it_is_back(ray: FakeRay, plan: Plan) -> None:
    pool = _pool(ray, count=1)
    ray.actors[0].dead_pings = 5
    assert list(pool.stream(Upper, plan, ["a"])) == [("a", "A")]
    assert ray.clock.now == pytest.approx(5 * actor_pool.REPING_PAUSE)


def _straggling(ray: FakeRay, plan: Plan, count: int = 2) -> tuple[ActorPool, Iterator[tuple[str, str]]]:
    """Three tasks that end, and "s", which hangs on the first actor."""
    pool = _pool(ray, count)
    ray.actors[0].hangs = {"s"}
    return pool, pool.stream(Upper, plan, list("sabc"))


def test_a_hung_task_is_repeated_elsewhere_after_thirty_seconds(ray: FakeRay, plan: Plan) -> None:
    _, results = _straggling(ray, plan)
    assert sorted(results) == [("a", "A"), ("b", "B"), ("c", "C"), ("s", "S")]
    assert [actor for actor, task in ray.sent if task == "s"] == ray.actors
    assert 30 < ray.clock.now < 32
    assert ray.killed == [ray.actors[0]], "the copy that hangs is ended"


def test_a_straggler_is_four_times_as_slow_as_the_median(ray: FakeRay, plan: Plan) -> None:
    plan.duration = 20.0
    _, results = _straggling(ray, plan)
    assert len(list(results)) == 4
    assert 80 < ray.clock.now - plan.duration < 82


def test_only_one_copy_of_a_straggler_is_sent(ray: FakeRay, plan: Plan) -> None:
    _, results = _straggling(ray, plan, count=3)
    ray.actors[1].hangs = ray.actors[2].hangs = {"s"}
    with pytest.raises(Endless):
        list(results)
    assert [task for _, task in ray.sent].count("s") == 2


def test_a_stop_sends_nothing_more_and_returns_what_was_sent(ray: FakeRay, plan: Plan) -> None:
    pool = _pool(ray)
    results = pool.stream(Upper, plan, list("abcdef"))
    finished = [next(results)]
    pool.stop()
    with pytest.raises(Stopped):
        finished.extend(results)
    assert sorted(key for key, _ in finished) == sorted(task for _, task in ray.sent) == ["a", "b"]


def test_without_any_worker_the_run_gives_up_after_ten_minutes(ray: FakeRay, plan: Plan) -> None:
    pool = _pool(ray)
    for actor in ray.actors:
        actor.silent = True
    with pytest.raises(WorkerLost, match=r"no worker has come up for 600 s: the cluster has 4 CPU, 1 GPU; lower"):
        list(pool.stream(Upper, plan, ["a"]))
    assert 600 < ray.clock.now < 602


def test_a_slow_task_is_not_a_missing_worker(ray: FakeRay, plan: Plan) -> None:
    plan.duration = 700.0
    assert len(list(_pool(ray).stream(Upper, plan, list("abc")))) == 3


def test_actors_of_new_nodes_are_put_to_work(ray: FakeRay, plan: Plan) -> None:
    pool = _pool(ray, count=1)
    ray.actors[0].silent = True
    pool.grow = lambda: [ray.remote(WorkerActor).remote()]
    results = pool.stream(Upper, plan, ["a"])
    assert list(results) == [("a", "A")]
    assert pool.actors == ray.actors and len(ray.actors) == 2
    assert 5 < ray.clock.now < 7


def test_a_pool_that_is_sent_away_leaves_its_growth_behind(ray: FakeRay) -> None:
    pool = ActorPool([], 4, grow=list)
    pool.spare.offer(Upper, Plan(Clock()), ["x"])
    sent = pool.__getstate__()
    assert sent.pop("spare") is not pool.spare
    assert sent == {"actors": [], "retries": 4, "stopping": False, "live": set(), "grow": None}
