"""What a failed task says, and that it survives the way between processes."""

from __future__ import annotations

import copy

import pytest

from adatsq_pipe.cluster.errors import TaskFailed

KEPT = "Finished units are kept; run again to retry"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TaskFailed("a", 1, "E: x", ""), f"unit 'a' failed once: E: x. {KEPT}"),
        (TaskFailed("a", 4, "E: x", "", ("b",)), f"unit 'a' failed 4 times (and so did b): E: x. {KEPT}"),
        (
            TaskFailed("a", 2, "E: x", "", ("b", "c", "d", "e")),
            f"unit 'a' failed 2 times (and so did b, c, d ...): E: x. {KEPT}",
        ),
    ],
)
def test_the_message_of_a_failed_task(error: TaskFailed, text: str) -> None:
    assert str(error) == text


def test_a_failed_task_can_be_copied_between_processes() -> None:
    error = copy.copy(TaskFailed("a", 2, "E: x", "trace", ("b",)))
    assert (error.task, error.tries, error.reason, error.traceback, error.others) == ("a", 2, "E: x", "trace", ("b",))
