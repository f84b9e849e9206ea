"""What every executor promises. A subclass provides the fixture `executor` and the class attributes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from adatsq_pipe.cluster.errors import Stopped, TaskFailed
from adatsq_pipe.cluster.inline_executor import InlineExecutor
from adatsq_pipe.cluster.ray_executor import RayExecutor
from tests.support.scripted_workers import (
    Fatal,
    Memory,
    NotRetryable,
    Recorder,
    Script,
    Shrinking,
    failing_search,
    search,
)

AnyExecutor = InlineExecutor | RayExecutor


class ExecutorContract:
    tries: ClassVar[int]
    """How often a task that always fails is tried."""
    processes: ClassVar[int]
    """How many workers are open at most."""

    def test_every_task_is_called_once_and_its_result_returned(self, executor: AnyExecutor, tmp_path: Path) -> None:
        script, keys = Script(str(tmp_path)), [f"k{i}" for i in range(7)]
        results = list(executor.stream(Recorder, script, keys))
        assert sorted(results) == [(key, key.upper()) for key in keys]
        assert [script.calls(key) for key in keys] == [1] * 7

    def test_no_tasks_open_no_worker(self, executor: AnyExecutor, tmp_path: Path) -> None:
        assert list(executor.stream(Recorder, Script(str(tmp_path)), [])) == []
        assert not (tmp_path / "opened").exists()

    def test_a_worker_stays_open_between_streams(self, executor: AnyExecutor, tmp_path: Path) -> None:
        for keys in (["a", "b", "c"], ["d", "e", "f"]):
            list(executor.stream(Recorder, Script(str(tmp_path)), keys))
        opened = (tmp_path / "opened").read_text().splitlines()
        assert 1 <= len(opened) == len(set(opened)) <= self.processes

    def test_another_context_opens_another_worker(self, executor: AnyExecutor, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            list(executor.stream(Recorder, Script(str(tmp_path / name)), ["a"]))
        assert [len((tmp_path / name / "opened").read_text().splitlines()) for name in ("one", "two")] == [1, 1]

    def test_a_failed_task_is_named_after_the_others_are_finished(self, executor: AnyExecutor, tmp_path: Path) -> None:
        script, results = Script(str(tmp_path), fail=("b",)), []
        with pytest.raises(TaskFailed, match=r"'b' failed .*ValueError: no good: b") as caught:
            results += [key for key, _ in executor.stream(Recorder, script, list("abcdef"))]
        assert (caught.value.task, caught.value.tries, caught.value.others) == ("b", self.tries, ())
        assert 'raise ValueError(f"no good: {key}")' in caught.value.traceback
        assert [script.calls(key) for key in "abcdef"] == [1, self.tries, 1, 1, 1, 1]

    def test_an_error_that_is_not_retryable_arrives_as_it_was_raised(
        self, executor: AnyExecutor, tmp_path: Path
    ) -> None:
        script = Script(str(tmp_path), permanent=("b",))
        with pytest.raises(NotRetryable, match=r"^never: b$"):
            list(executor.stream(Recorder, script, list("abc")))
        assert [script.calls(key) for key in "abc"] == [1, 1, 1]

    def test_a_fatal_error_ends_the_stream(self, executor: AnyExecutor, tmp_path: Path) -> None:
        script, keys = Script(str(tmp_path), fatal=("k0",), pause=0.1), [f"k{i}" for i in range(200)]
        with pytest.raises(Fatal, match=r"^all is lost: k0$"):
            list(executor.stream(Recorder, script, keys))
        assert script.calls("k0") == 1 and sum(script.calls(key) for key in keys) < 100

    def test_where_all_fail_the_rest_is_not_tried(self, executor: AnyExecutor, tmp_path: Path) -> None:
        keys = [f"k{i:02}" for i in range(20)]
        script = Script(str(tmp_path), fail=tuple(keys))
        with pytest.raises(TaskFailed, match="and so did") as caught:
            list(executor.stream(Recorder, script, keys))
        assert len(caught.value.others) == 2
        assert sum(script.calls(key) > 0 for key in keys) < 10

    def test_one_success_lets_all_others_be_tried(self, executor: AnyExecutor, tmp_path: Path) -> None:
        keys = [f"k{i}" for i in range(6)]
        script = Script(str(tmp_path), fail=tuple(keys[1:]))
        with pytest.raises(TaskFailed, match="'k1' failed"):
            list(executor.stream(Recorder, script, keys))
        assert [script.calls(key) for key in keys] == [1, *[self.tries] * 5]

    def test_a_worker_that_cannot_be_opened_fails_the_task(self, executor: AnyExecutor, tmp_path: Path) -> None:
        script = Script(str(tmp_path), unopenable=True)
        with pytest.raises(TaskFailed, match="ValueError: cannot be opened") as caught:
            list(executor.stream(Recorder, script, ["a"]))
        assert caught.value.tries == self.tries and script.calls("a") == 0

    def test_a_worker_that_recovers_is_called_again_and_stays_changed(
        self, executor: AnyExecutor, tmp_path: Path
    ) -> None:
        results = dict(executor.stream(Shrinking, Memory(str(tmp_path), rows=8, fit=2), ["a", "b", "c", "d"]))
        assert results == dict.fromkeys("abcd", 2)
        rows = [int(line) for line in (tmp_path / "rows").read_text().split()]
        opened = rows.count(8)
        assert 1 <= opened <= self.processes and rows.count(4) == opened and rows.count(2) == 4

    def test_an_error_raised_while_recovering_ends_the_task(self, executor: AnyExecutor, tmp_path: Path) -> None:
        with pytest.raises(NotRetryable, match=r"^a: one row does not fit$"):
            list(executor.stream(Shrinking, Memory(str(tmp_path), rows=4, fit=0), ["a"]))
        assert (tmp_path / "rows").read_text().split() == ["4", "2", "1"]

    def test_a_stop_lets_tasks_in_progress_finish(self, executor: AnyExecutor, tmp_path: Path) -> None:
        script, keys = Script(str(tmp_path)), [f"k{i}" for i in range(20)]
        results: list[str] = []

        def consume() -> None:
            for key, _ in executor.stream(Recorder, script, keys):
                results.append(key)
                executor.stop()

        with pytest.raises(Stopped):
            consume()
        assert 1 <= len(results) <= self.processes + 1
        assert [key for key in keys if script.calls(key)] == sorted(results)

    def test_nothing_starts_after_a_stop(self, executor: AnyExecutor, tmp_path: Path) -> None:
        script = Script(str(tmp_path))
        executor.stop()
        with pytest.raises(Stopped):
            list(executor.stream(Recorder, script, ["a"]))
        with pytest.raises(Stopped):
            list(executor.stream(Recorder, script, []))
        assert script.calls("a") == 0

    def test_a_search_dispatches_and_reports(self, executor: AnyExecutor, tmp_path: Path) -> None:
        reports: list[tuple[int, int]] = []
        executor.coordinate(search, Script(str(tmp_path)), lambda done, total: reports.append((done, total)))
        assert (tmp_path / "result").read_text() == "AX,BX" and reports[-1] == (4, 4)

    def test_the_error_of_a_search_arrives_as_it_was_raised(self, executor: AnyExecutor, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"^no good: the search$"):
            executor.coordinate(failing_search, Script(str(tmp_path)), lambda done, total: None)
