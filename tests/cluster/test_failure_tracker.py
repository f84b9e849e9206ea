"""Which failures are tried again, which end the stream, and what is raised in the end."""

from __future__ import annotations

import errno

import pytest

from adatsq_pipe.cluster.errors import TaskFailed
from adatsq_pipe.cluster.failure_tracker import FailureTracker
from tests.support.scripted_workers import Fatal, NotRetryable


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_task_is_tried_again_as_often_as_retries_say(retries: int) -> None:
    failures = FailureTracker(retries)
    assert [failures.failed("a", ValueError("x"), "") for _ in range(retries + 1)] == [True] * retries + [False]
    with pytest.raises(TaskFailed) as caught:
        failures.raise_failures()
    assert caught.value.tries == retries + 1


def test_tries_are_counted_for_each_task() -> None:
    failures = FailureTracker(retries=1)
    assert failures.failed("a", ValueError(), "") and failures.failed("b", ValueError(), "")
    assert not failures.failed("a", ValueError(), "")
    failures.succeeded()
    with pytest.raises(TaskFailed) as caught:
        failures.raise_failures()
    assert (caught.value.task, caught.value.others) == ("a", ()), "b may still pass"


def test_without_failures_nothing_is_raised() -> None:
    failures = FailureTracker(retries=1)
    failures.failed("a", ValueError(), "")
    failures.raise_failures()


def test_what_is_not_retryable_is_not_tried_again_and_raised_as_it_is() -> None:
    failures, error = FailureTracker(retries=3), NotRetryable("never")
    failures.succeeded()
    assert failures.failed("b", error, "") is False
    with pytest.raises(NotRetryable) as caught:
        failures.raise_failures()
    assert caught.value is error


@pytest.mark.parametrize(
    "error", [Fatal("x"), *(OSError(number, "full") for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))]
)
def test_a_fatal_error_and_a_full_disk_end_the_stream_at_once(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        FailureTracker(retries=3).failed("a", error, "")
    assert caught.value is error


def test_another_error_of_the_system_is_tried_again() -> None:
    assert FailureTracker(retries=1).failed("a", OSError(errno.EIO, "input/output"), "")


def test_the_third_task_given_up_ends_a_stream_without_success() -> None:
    failures = FailureTracker(retries=0)
    assert [failures.failed(task, ValueError(task), f"trace {task}") for task in "cb"] == [False, False]
    with pytest.raises(TaskFailed) as caught:
        failures.failed("a", ValueError("a"), "trace a")
    assert (caught.value.task, caught.value.reason, caught.value.traceback) == ("a", "ValueError: a", "trace a")
    assert caught.value.others == ("b", "c")


def test_one_success_lets_the_others_go_on() -> None:
    failures = FailureTracker(retries=0)
    failures.succeeded()
    assert [failures.failed(f"t{i}", ValueError(), "") for i in range(9)] == [False] * 9
