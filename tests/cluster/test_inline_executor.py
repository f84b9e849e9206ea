"""The inline executor obeys the contract, in the order of its keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from adatsq_pipe.cluster.errors import Stopped, TaskFailed
from adatsq_pipe.cluster.inline_executor import InlineExecutor
from tests.support.executor_contract import ExecutorContract
from tests.support.scripted_workers import Recorder, Script


class TestInlineExecutor(ExecutorContract):
    tries = 1
    processes = 1

    @pytest.fixture
    def executor(self) -> InlineExecutor:
        return InlineExecutor()

    def test_tasks_run_in_the_order_of_their_keys(self, executor: InlineExecutor, tmp_path: Path) -> None:
        results = executor.stream(Recorder, Script(str(tmp_path)), (key for key in "cab"))
        assert next(results) == ("c", "C")
        assert not (tmp_path / "call-a").exists(), "a result is passed on before the next task begins"
        assert list(results) == [("a", "A"), ("b", "B")]

    def test_a_stop_ends_the_stream_before_the_next_task(self, executor: InlineExecutor, tmp_path: Path) -> None:
        script = Script(str(tmp_path))
        results = executor.stream(Recorder, script, "ab")
        next(results)
        executor.stop()
        with pytest.raises(Stopped):
            next(results)
        assert script.calls("b") == 0

    def test_after_one_success_every_task_is_tried(self, executor: InlineExecutor, tmp_path: Path) -> None:
        script = Script(str(tmp_path), fail=tuple("bcde"))
        with pytest.raises(TaskFailed) as caught:
            list(executor.stream(Recorder, script, list("abcdef")))
        assert caught.value.task == "b" and caught.value.others == ("c", "d", "e")
        assert [script.calls(key) for key in "abcdef"] == [1] * 6
