"""Runs as jobs of a cluster: handing one in, and following it to its end through a connection that may break.

Speaks to the jobs API of the head's dashboard, by Ray's own client. Everything that can be wrong with the address, the
token, the versions and the id is told in one line. Nothing of the environment and no token is printed or kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import requests
from packaging.requirements import Requirement
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from adatsq_pipe.cluster.errors import JobRefused, LostSight

REOPENED = 5
"""How often in a row a connection may break before anything came through it."""
QUIET = 60.0
"""Seconds without a word after which the connection is opened anew: a dead one may look like a silent one."""
KNOCK = 10.0

T = TypeVar("T")

_LOST = (aiohttp.ClientError, requests.RequestException, OSError, RuntimeError)
_ELSEWHERE = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
for _module in ("dashboard_sdk", "job.sdk"):
    logging.getLogger(f"ray.dashboard.modules.{_module}").setLevel(logging.WARNING)  # uploads, sockets: not for people
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended: its exit code (None if its command never ran to an end), whether it was stopped, and the last
    line of what the cluster says of it."""

    code: int | None
    stopped: bool
    why: str


def check_address(address: str) -> str:
    """The address, if it has the form of a dashboard's. Raises ValueError."""
    parts = urlsplit(address)
    try:
        parts.port  # noqa: B018
    except ValueError:
        raise ValueError(f"--address {address} has no number as its port; write http://{parts.hostname}:8265") from None
    if parts.username or parts.password:
        raise ValueError("--address holds a user or a password; leave it out (tokens: RAY_AUTH_TOKEN_PATH)")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        host = parts.hostname if "://" in address else address.partition(":")[0]
        raise ValueError(
            f"--address {address} is not that of a dashboard; write http://{host or 'HEAD'}:8265 "
            "(the port that `ray start --head` names for the dashboard)"
        )
    return address.rstrip("/")


def check_id(job: str) -> str:
    """The submission id, if it is one. Raises ValueError."""
    if not _ID.fullmatch(job):
        raise ValueError(f"{job!r} is no submission id; use letters, digits, '-', '_' and '.', at most 100")
    return job


def new_id() -> str:
    return f"adatsq-{secrets.token_hex(6)}"


def connect(address: str, wanted: Requirement) -> JobSubmissionClient:
    """A client of the dashboard at `address`, whose Ray is a `wanted` one. Raises JobRefused."""
    _knock(address)
    with _this_address_only():
        client = _once(address, "", lambda: JobSubmissionClient(address))
    version = getattr(client, "_server_ray_version", None)
    if version and not wanted.specifier.contains(version, prereleases=True):
        raise JobRefused(
            f"the cluster at {address} runs Ray {version}, this package works with {wanted.name} {wanted.specifier}; "
            "start the cluster with one of those"
        )
    return client


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
    _once(
        client.get_address(),
        job,
        lambda: client.submit_job(entrypoint=command, submission_id=job, runtime_env=environment),
    )


def follow(client: JobSubmissionClient, job: str, show: Callable[[str], None], say: Callable[[str], None]) -> Ended:
    """Show the job's log as it grows, nothing twice, until it has ended; say what it waits for.

    Raises JobRefused or LostSight.
    """
    address, shown, lost, told = client.get_address(), 0, 0, False

    def pass_on(text: str) -> None:
        nonlocal shown
        show(text)
        shown += len(text)

    while True:
        before = shown
        try:
            with _told(address, job):
                info = client.get_job_info(job)
                if info.status == JobStatus.PENDING and not told:
                    told = True
                    say("the cluster prepares the job's environment (minutes, where packages have to be installed)")
                if not info.status.is_terminal():
                    asyncio.run(_tail(client, job, shown, pass_on))
                    time.sleep(0.2)
                    continue
        except JobRefused:
            raise
        except _LOST as error:
            lost = 1 if shown > before else lost + 1
            if lost > REOPENED:
                raise LostSight(f"the connection to {address} broke {lost} times ({_first(error)})") from None
            time.sleep(min(0.5 * 2**lost, 15))
        else:
            with suppress(*_LOST):
                pass_on(client.get_job_logs(job)[shown:])
            return _ended(info)


async def _tail(client: JobSubmissionClient, job: str, skip: int, show: Callable[[str], None]) -> None:
    """Show what the log says after its first `skip` characters, until the server closes."""
    parts = client.tail_job_logs(job)
    while True:
        try:
            part = await asyncio.wait_for(anext(parts), QUIET)
        except (StopAsyncIteration, TimeoutError):
            return
        if len(part) > skip:
            show(part[skip:])
        skip = max(0, skip - len(part))


def _once(address: str, job: str, ask: Callable[[], T]) -> T:
    """What `ask` gives; every way in which it can fail, as JobRefused."""
    try:
        with _told(address, job):
            return ask()
    except JobRefused:
        raise
    except _LOST as error:
        raise JobRefused(f"the cluster at {address} did not take it: {_first(error)}") from None


def _ended(info: Any) -> Ended:
    lines = [line for line in (info.message or "").splitlines() if line.strip()]
    return Ended(
        code=0 if info.status == JobStatus.SUCCEEDED else info.driver_exit_code,
        stopped=info.status == JobStatus.STOPPED,
        why=lines[-1].strip()[:300] if lines else "",
    )


@contextmanager
def _this_address_only() -> Iterator[None]:
    """Ray's client lets the environment overrule the address it is given."""
    kept = {name: os.environ.pop(name) for name in _ELSEWHERE if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _knock(address: str) -> None:
    """Whether a dashboard answers at all: Ray's client waits without end, and does not say what it met instead."""
    try:
        answer = requests.get(f"{address}/api/version", timeout=KNOCK, allow_redirects=False)
    except requests.exceptions.ReadTimeout:
        raise _no_dashboard(address, f"no answer within {KNOCK:.0f} s") from None
    except (requests.exceptions.ConnectTimeout, requests.exceptions.ConnectionError) as error:
        if "RemoteDisconnected" in str(error) or "BadStatusLine" in str(error):
            raise _no_dashboard(address, "it does not speak HTTP") from None
        raise JobRefused(
            f"nothing answers at {address} ({_reason(error)}); check host and port, or open a way to it: "
            "ssh -L 8265:localhost:8265 HEAD"
        ) from None
    if answer.status_code in (401, 403):
        return
    try:
        answer.json()["ray_version"]
    except (ValueError, KeyError, TypeError):
        raise _no_dashboard(address, f"it says {answer.status_code}") from None


def _no_dashboard(address: str, reason: str) -> JobRefused:
    return JobRefused(
        f"what answers at {address} is no Ray dashboard ({reason}); the head needs ray[default] and "
        "`ray start --head --include-dashboard=true`, the port is 8265 unless it was started with another"
    )


@contextmanager
def _told(address: str, job: str = "") -> Iterator[None]:
    """Errors of Ray's client that no second try mends, as JobRefused."""
    try:
        yield
    except AuthenticationError as error:
        answer = "asks for a token (401)" if "required" in str(error) else "refused the token (403)"
        raise JobRefused(
            f"the cluster at {address} {answer}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) "
            "to the token of the cluster"
        ) from None
    except aiohttp.WSServerHandshakeError as error:
        if error.status in (401, 403):
            raise JobRefused(f"the cluster at {address} let nobody follow its logs ({error.status})") from None
        raise
    except RuntimeError as error:
        text = str(error)
        if "already exists" in text:
            raise JobRefused(
                f"the submission id {job} is taken on {address}; give another --submission-id, or follow that job: "
                f"adatsq-pipe attach {job} --address {address}"
            ) from None
        if "does not exist" in text:
            raise JobRefused(
                f"the cluster at {address} knows no job {job}; `ray job list` shows those it has"
            ) from None
        raise


def _reason(error: Exception) -> str:
    found = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)|timed out|certificate verify failed", str(error))
    return (found.group(1) or found.group(0)) if found else type(error).__name__


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
