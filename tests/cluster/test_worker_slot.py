"""When a worker is opened, and what happens to the one before."""

from __future__ import annotations

import weakref

import pytest

from adatsq_pipe.cluster.worker_slot import WorkerSlot
from tests.support.scripted_workers import NoMemory, NotRetryable


class Opened:
    """Keeps what it was opened with, and whom it found alive."""

    before: weakref.ref[Opened] | None = None

    def __init__(self, context: str) -> None:
        self.context = context
        self.alone = Opened.before is None or Opened.before() is None
        Opened.before = weakref.ref(self)

    def __call__(self, key: str) -> str:
        return f"{self.context}/{key}"


class Other(Opened):
    pass


class Refusing:
    """Fails every time, and cannot recover from it."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, key: str) -> str:
        raise self.error

    def recover(self, key: str, error: BaseException) -> bool:
        assert error is self.error and key == "a"
        return False


def test_an_equal_context_keeps_the_worker() -> None:
    slot = WorkerSlot()
    assert slot.open(Opened, "x") is slot.open(Opened, "".join(["x"]))
    assert slot.run(Opened, "x", "a") == "x/a"


def test_another_class_or_context_opens_another_worker_after_the_first_is_gone() -> None:
    slot = WorkerSlot()
    slot.open(Opened, "x")
    assert slot.open(Opened, "y").__dict__ == {"context": "y", "alone": True}
    assert type(slot.open(Other, "y")) is Other
    assert slot.run(Opened, "x", "b") == "x/b"


@pytest.mark.parametrize("error", [NoMemory("x"), NotRetryable("y")])
def test_a_worker_that_cannot_recover_raises_its_own_error(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        WorkerSlot().run(Refusing, error, "a")
    assert caught.value is error


class Recovering:
    """Fails until it has recovered as often as its context says."""

    def __init__(self, times: int) -> None:
        self.times, self.recovered = times, list[tuple[str, str]]()

    def __call__(self, key: str) -> list[tuple[str, str]]:
        if len(self.recovered) < self.times:
            raise NoMemory(f"try {len(self.recovered)}")
        return self.recovered

    def recover(self, key: str, error: BaseException) -> bool:
        self.recovered.append((key, str(error)))
        return True


def test_a_worker_that_recovers_does_the_same_task_again_at_once() -> None:
    assert WorkerSlot().run(Recovering, 2, "a") == [("a", "try 0"), ("a", "try 1")]
