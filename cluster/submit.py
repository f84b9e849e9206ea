"""Runs as jobs of a cluster: handing one in, and following it to its end through a connection that may break."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from adatsq_pipe.cluster.dashboard import LOST, first_line, once, told
from adatsq_pipe.cluster.errors import JobRefused, LostSight

REOPENED = 5
"""How often in a row the head may not answer. A log that breaks off while the head answers is opened again for ever."""
QUIET = 60.0
"""Seconds without a word after which the connection is opened anew: a dead one may look like a silent one."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended: its exit code (None if its command never ran to an end), whether it was stopped, and the last
    line of what the cluster says of it."""

    code: int | None
    stopped: bool
    why: str


def check_id(job: str) -> str:
    """The submission id, if it is one. Raises ValueError."""
    if not _ID.fullmatch(job):
        raise ValueError(f"{job!r} is no submission id; use letters, digits, '-', '_' and '.', at most 100")
    return job


def new_id() -> str:
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
    """Hand the job in, with the wheel and what it requires as its environment. Raises JobRefused."""
    environment: dict[str, Any] = {"py_modules": [str(wheel)]}
    if requirements:
        environment["pip"] = list(requirements)
    if working_dir is not None:
        environment["working_dir"] = str(working_dir)
    once(
        client.get_address(),
        job,
        lambda: client.submit_job(entrypoint=command, submission_id=job, runtime_env=environment),
    )


def follow(client: JobSubmissionClient, job: str, show: Callable[[str], None], say: Callable[[str], None]) -> Ended:
    """Show the job's log as it grows, nothing twice, until it has ended; say what it waits for.

    Raises JobRefused or LostSight.
    """
    address, shown, lost, said = client.get_address(), 0, 0, False

    def pass_on(text: str) -> None:
        nonlocal shown
        show(text)
        shown += len(text)

    while True:
        try:
            with told(address, job):
                info, lost = client.get_job_info(job), 0
                if info.status == JobStatus.PENDING and not said:
                    said = True
                    say("the cluster prepares the job's environment (minutes, where packages have to be installed)")
                if not info.status.is_terminal():
                    asyncio.run(_tail(client, job, shown, pass_on))
                    time.sleep(0.2)
                    continue
        except JobRefused:
            raise
        except LOST as error:
            lost += 1
            if lost > REOPENED:
                raise LostSight(f"{address} did not answer {lost} times in a row ({first_line(error)})") from None
            time.sleep(min(0.5 * 2**lost, 15))
        else:
            with suppress(*LOST):
                pass_on(client.get_job_logs(job)[shown:])
            return _ended(info)


async def _tail(client: JobSubmissionClient, job: str, skip: int, show: Callable[[str], None]) -> None:
    """Show what the log says after its first `skip` characters, until the server closes."""
    parts = client.tail_job_logs(job)
    while True:
        try:
            async with asyncio.timeout(QUIET):  # wait_for of Python 3.11 loses an interrupt that comes with a part
                part = await anext(parts)
        except (StopAsyncIteration, TimeoutError):
            return
        if len(part) > skip:
            show(part[skip:])
        skip = max(0, skip - len(part))


def _ended(info: Any) -> Ended:
    lines = [line for line in (info.message or "").splitlines() if line.strip()]
    return Ended(
        code=0 if info.status == JobStatus.SUCCEEDED else info.driver_exit_code,
        stopped=info.status == JobStatus.STOPPED,
        why=lines[-1].strip()[:300] if lines else "",
    )
