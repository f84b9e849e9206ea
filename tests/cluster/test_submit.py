"""Following a job through a client that is played in this process; what is submitted; ids."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from adatsq_pipe.cluster import submit
from adatsq_pipe.cluster.errors import ConnectionLost, JobRefused

LOG = "one\ntwo\nthree\n"
ADDRESS = "http://127.0.0.1:1"


class PlayedClient:
    """A job with these states in turn (an error is raised instead), and what each connection to its log brings."""

    def __init__(self, states: Sequence[JobStatus | Exception], connections: Sequence[Sequence[str]] = ()) -> None:
        self.states, self.connections = list(states), list(connections)
        self.log, self.message, self.exit_code = LOG, "", None
        self.submitted: dict[str, Any] = {}

    def get_address(self) -> str:
        return ADDRESS

    def get_job_info(self, job: str) -> SimpleNamespace:
        state = self.states.pop(0)
        if isinstance(state, Exception):
            raise state
        return SimpleNamespace(status=state, message=self.message, driver_exit_code=self.exit_code)

    def get_job_logs(self, job: str) -> str:
        return self.log

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for chunk in self.connections.pop(0):
            if chunk == "interrupt":
                signal.raise_signal(signal.SIGINT)
            yield chunk

    def submit_job(self, **arguments: Any) -> str:
        self.submitted = arguments
        return str(arguments["submission_id"])


class Follower:
    """What `follow` wrote, what it notified of, and for how long it slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written, self.notices, self.pauses = "", list[str](), list[float]()
        monkeypatch.setattr(submit, "time", SimpleNamespace(sleep=self.pauses.append))

    def write(self, text: str) -> None:
        self.written += text

    def follow(self, client: Any) -> submit.JobOutcome:
        return submit.follow(client, "job", self.write, self.notices.append)


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> Follower:
    return Follower(monkeypatch)


def test_the_whole_log_is_written_and_nothing_twice(follower: Follower) -> None:
    running = JobStatus.RUNNING
    connections = [["one\n", "tw"], ["on", "e\ntwo\n"], ["one\ntwo\nth"]]
    outcome = follower.follow(PlayedClient([running, running, running, JobStatus.SUCCEEDED], connections))
    assert follower.written == LOG
    assert outcome == submit.JobOutcome(exit_code=0, stopped=False, message="")


def test_the_wait_for_the_environment_is_reported_once(follower: Follower) -> None:
    follower.follow(PlayedClient([JobStatus.PENDING, JobStatus.PENDING, JobStatus.SUCCEEDED], [[], []]))
    assert len(follower.notices) == 1 and "prepares the job's environment" in follower.notices[0]


@pytest.mark.parametrize(
    ("status", "exit_code", "outcome"),
    [
        (JobStatus.FAILED, 75, submit.JobOutcome(exit_code=75, stopped=False, message="the end")),
        (JobStatus.FAILED, None, submit.JobOutcome(exit_code=None, stopped=False, message="the end")),
        (JobStatus.STOPPED, None, submit.JobOutcome(exit_code=None, stopped=True, message="the end")),
    ],
)
def test_how_a_job_ended(
    status: JobStatus, exit_code: int | None, outcome: submit.JobOutcome, follower: Follower
) -> None:
    client = PlayedClient([status])
    client.message, client.exit_code = "first\n  the end \n\n", exit_code
    assert follower.follow(client) == outcome


def test_failures_in_a_row_are_counted_from_the_last_answer(follower: Follower) -> None:
    down: list[JobStatus | Exception] = [ConnectionError("down")] * submit.MAX_RECONNECTS
    client = PlayedClient([*down, JobStatus.RUNNING, *down, JobStatus.SUCCEEDED], [[LOG]])
    assert follower.follow(client).exit_code == 0 and follower.written == LOG
    assert follower.pauses == [1, 2, 4, 8, 15, submit.POLL_INTERVAL, 1, 2, 4, 8, 15]


def test_a_cluster_that_is_gone_is_given_up(follower: Follower) -> None:
    with pytest.raises(ConnectionLost, match=rf"^{ADDRESS} did not answer 6 times in a row \(down\)$"):
        follower.follow(PlayedClient([ConnectionError("down")] * 6))


def test_an_unknown_job_is_not_asked_for_again(follower: Follower) -> None:
    with pytest.raises(JobRefused, match="has no job job; list its jobs"):
        follower.follow(PlayedClient([RuntimeError("Job job does not exist")]))
    assert follower.pauses == []


def test_an_interrupt_that_comes_with_a_chunk_is_not_lost(follower: Follower) -> None:
    with pytest.raises(KeyboardInterrupt):
        follower.follow(PlayedClient([JobStatus.RUNNING, JobStatus.SUCCEEDED], [["interrupt"]]))


def _submit(client: Any, requirements: Sequence[str] = (), working_dir: Path | None = None) -> None:
    wheel = Path("some.whl")
    submit.submit(client, job="j", command="run", wheel=wheel, requirements=requirements, working_dir=working_dir)


def test_a_job_is_sent_its_wheel_requirements_and_folder() -> None:
    client = PlayedClient([])
    _submit(client, ["a>=1"], Path("folder"))
    environment = {"py_modules": ["some.whl"], "pip": ["a>=1"], "working_dir": "folder"}
    assert client.submitted == {"entrypoint": "run", "submission_id": "j", "runtime_env": environment}
    _submit(client)
    assert client.submitted["runtime_env"] == {"py_modules": ["some.whl"]}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("Job j already exists"), "already has a job j; choose another --submission-id.*attach j --add"),
        (RuntimeError("no space\nsecond line"), f"the cluster at {ADDRESS} refused the request: no space$"),
        (ConnectionError(), "refused the request: ConnectionError$"),
    ],
)
def test_what_the_cluster_refuses_is_one_line(error: Exception, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: Any) -> str:
        raise error

    client = PlayedClient([])
    monkeypatch.setattr(client, "submit_job", refuse)
    with pytest.raises(JobRefused, match=text) as caught:
        _submit(client)
    assert "\n" not in str(caught.value)


def test_submission_ids() -> None:
    assert submit.new_id() != submit.new_id() and submit.new_id().startswith("adatsq-")
    for job in (submit.new_id(), "a", "A1_.-", "x" * 100):
        assert submit.check_id(job) == job
    for job in ("", "../x", "a b", "a/b", "-a", "x" * 101):
        with pytest.raises(ValueError, match="not a submission id"):
            submit.check_id(job)
