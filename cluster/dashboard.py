"""The dashboard of a cluster's head, as an address that people give: its form, whether it is one, and of the right Ray.

Everything that can be wrong with the address, the token and the versions is told in one line. Nothing of the
environment and no token is printed or kept.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import requests
from packaging.requirements import Requirement
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from adatsq_pipe.cluster.errors import JobRefused

KNOCK = 10.0
"""Seconds within which a dashboard says its version."""
LOST = (aiohttp.ClientError, requests.RequestException, OSError, RuntimeError)
"""What Ray's client raises when something is in the way."""

T = TypeVar("T")

_ELSEWHERE = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
for _module in ("dashboard_sdk", "job.sdk"):
    logging.getLogger(f"ray.dashboard.modules.{_module}").setLevel(logging.WARNING)  # uploads, sockets: not for people


def check_address(address: str) -> str:
    """The address, if it has the form of a dashboard's. Raises ValueError."""
    parts = urlsplit(address)
    if parts.username or parts.password:
        raise ValueError("--address holds a user or a password; leave it out (tokens: RAY_AUTH_TOKEN_PATH)")
    try:
        parts.port  # noqa: B018
    except ValueError:
        raise ValueError(f"--address {address} has no number as its port; write http://{parts.hostname}:8265") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        host = parts.hostname if "://" in address else address.partition(":")[0]
        raise ValueError(
            f"--address {address} is not that of a dashboard; write http://{host or 'HEAD'}:8265 "
            "(the port that `ray start --head` names for the dashboard)"
        )
    return address.rstrip("/")


def connect(address: str, wanted: Requirement) -> JobSubmissionClient:
    """A client of the dashboard at `address`, whose Ray is a `wanted` one. Raises JobRefused."""
    _knock(address)
    with _this_address_only():
        client = once(address, "", lambda: JobSubmissionClient(address))
    version = getattr(client, "_server_ray_version", None)
    if version and not wanted.specifier.contains(version, prereleases=True):
        raise JobRefused(
            f"the cluster at {address} runs Ray {version}, this package works with {wanted.name} {wanted.specifier}; "
            "start the cluster with one of those"
        )
    return client


def once(address: str, job: str, ask: Callable[[], T]) -> T:
    """What `ask` gives; every way in which it can fail, as JobRefused."""
    try:
        with told(address, job):
            return ask()
    except JobRefused:
        raise
    except LOST as error:
        raise JobRefused(f"the cluster at {address} did not take it: {first_line(error)}") from None


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
    except requests.RequestException as error:
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
def told(address: str, job: str = "") -> Iterator[None]:
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


def first_line(error: BaseException) -> str:
    """What an error says, short enough to stand in a line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
