"""Jobs of a cluster: submits one, and follows it to its end over a connection that may break."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from adatsq_pipe.cluster.dashboard import CLIENT_ERRORS, first_line, refusals, request
from adatsq_pipe.cluster.errors import ConnectionLost, JobRefused

MAX_RECONNECTS = 5
"""Failed requests in a row before the connection counts as lost. A log stream that ends early is always reopened."""
MAX_SILENCE = 60.0
"""Seconds without output before the log stream is reopened: a dead connection looks like a silent job."""
POLL_INTERVAL = 0.2

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """How a job ended."""

    exit_code: int | None
    """None if its command did not run to an end."""
    stopped: bool
    """Whether somebody stopped it through the cluster."""
    message: str
    """The last line of the cluster's own message; may be empty."""


def check_id(job: str) -> str:
    """The submission id unchanged. Raises ValueError if Ray would not take it."""
    if not _ID.fullmatch(job):
        raise ValueError(f"{job!r} is not a submission id; use at most 100 letters, digits, '-', '_' and '.'")
    return job


def new_id() -> str:
    """A submission id that no other job has."""
    return f"adatsq-{secrets.token_hex(6)}"


def submit(
    client: JobSubmissionClient,
    *,
    job: str,
    command: str,
    wheel: Path,
    requirements: Sequence[str],
    working_dir: Path | None,
) -> None:
    """Submit `command` as a job whose environment has the wheel and its requirements. Raises JobRefused."""
    environment: dict[str, str | list[str]] = {"py_modules": [str(wheel)]}
    if requirements:
        environment["pip"] = list(requirements)
    if working_dir is not None:
        environment["working_dir"] = str(working_dir)
    request(
        client.get_address(),
        job,
        lambda: client.submit_job(entrypoint=command, submission_id=job, runtime_env=environment),
    )


def follow(
    client: JobSubmissionClient, job: str, write: Callable[[str], None], notify: Callable[[str], None]
) -> JobOutcome:
    """Pass the job's log to `write` as it grows, no character twice, until the job has ended.

    `notify` gets a line about what the job waits for. Raises JobRefused, ConnectionLost.
    """
    address, written, failures, notified = client.get_address(), 0, 0, False

    def write_counted(text: str) -> None:
        nonlocal written
        write(text)
        written += len(text)

    while True:
        try:
            with refusals(address, job):
                details, failures = client.get_job_info(job), 0
                if details.status == JobStatus.PENDING and not notified:
                    notified = True
                    notify("the cluster prepares the job's environment (minutes, if packages must be installed)")
                if not details.status.is_terminal():
                    asyncio.run(_tail(client, job, written, write_counted))
                    time.sleep(POLL_INTERVAL)
                    continue
        except JobRefused:
            raise
        except CLIENT_ERRORS as error:
            failures += 1
            if failures > MAX_RECONNECTS:
                raise ConnectionLost(
                    f"{address} did not answer {failures} times in a row ({first_line(error)})"
                ) from None
            time.sleep(min(0.5 * 2**failures, 15))
        else:
            with suppress(*CLIENT_ERRORS):
                write_counted(client.get_job_logs(job)[written:])
            return _outcome(details)


async def _tail(client: JobSubmissionClient, job: str, skip: int, write: Callable[[str], None]) -> None:
    """Write the log from character `skip` on, until the server closes the stream or is silent for too long."""
    chunks = client.tail_job_logs(job)
    while True:
        try:
            async with asyncio.timeout(MAX_SILENCE):  # wait_for of Python 3.11 loses a Ctrl-C that comes with a chunk
                chunk = await anext(chunks)
        except (StopAsyncIteration, TimeoutError):
            return
        if len(chunk) > skip:
            write(chunk[skip:])
        skip = max(0, skip - len(chunk))


def _outcome(details: JobDetails) -> JobOutcome:
    lines = [line for line in (details.message or "").splitlines() if line.strip()]
    return JobOutcome(
        exit_code=0 if details.status == JobStatus.SUCCEEDED else details.driver_exit_code,
        stopped=details.status == JobStatus.STOPPED,
        message=lines[-1].strip()[:300] if lines else "",
    )
