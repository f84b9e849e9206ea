"""The dashboard of a Ray cluster: checks its address, whether one answers there, and whether its Ray version fits.

Whatever is wrong with the address, the token or the version is reported in one line. No token and nothing else of the
environment is printed or stored.
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

PROBE_TIMEOUT = 10.0
"""Seconds within which a dashboard must return its version."""
CLIENT_ERRORS = (aiohttp.ClientError, requests.RequestException, OSError, RuntimeError)
"""What Ray's client raises when a request or the connection fails."""
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Environment variables that override the address passed to Ray's client."""

T = TypeVar("T")

for _module in ("dashboard_sdk", "job.sdk"):
    # Ray logs every upload and every closed socket at INFO.
    logging.getLogger(f"ray.dashboard.modules.{_module}").setLevel(logging.WARNING)


def check_address(address: str) -> str:
    """The address without a trailing slash. Raises ValueError if it is not a dashboard's http(s) address."""
    parts = urlsplit(address)
    if parts.username or parts.password:
        raise ValueError("--address contains a user or a password; leave it out (tokens: RAY_AUTH_TOKEN_PATH)")
    try:
        parts.port  # noqa: B018
    except ValueError:
        raise ValueError(
            f"the port of --address {address} is not a number; write http://{parts.hostname}:8265"
        ) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        host = parts.hostname if "://" in address else address.partition(":")[0]
        raise ValueError(
            f"--address {address} is not the address of a dashboard; write http://{host or 'HEAD'}:8265 "
            "(the port that `ray start --head` prints for the dashboard)"
        )
    return address.rstrip("/")


def connect(address: str, requirement: Requirement) -> JobSubmissionClient:
    """A client of the dashboard at `address`, whose Ray meets `requirement`. Raises JobRefused."""
    _probe(address)
    with _without_address_variables():
        client = request(address, "", lambda: JobSubmissionClient(address))
    version = getattr(client, "_server_ray_version", None)
    if version and not requirement.specifier.contains(version, prereleases=True):
        raise JobRefused(
            f"the cluster at {address} runs Ray {version}, but this package needs {requirement.name} "
            f"{requirement.specifier}; start the cluster with such a version"
        )
    return client


def request(address: str, job: str, call: Callable[[], T]) -> T:
    """The result of `call`, which uses Ray's client. Raises JobRefused for every way in which the client fails."""
    try:
        with refusals(address, job):
            return call()
    except JobRefused:
        raise
    except CLIENT_ERRORS as error:
        raise JobRefused(f"the cluster at {address} refused the request: {first_line(error)}") from None


@contextmanager
def refusals(address: str, job: str = "") -> Iterator[None]:
    """Raise JobRefused for those errors of Ray's client that another try cannot fix; let the others pass."""
    try:
        yield
    except AuthenticationError as error:
        answer = "requires a token (401)" if "required" in str(error) else "refused the token (403)"
        raise JobRefused(
            f"the cluster at {address} {answer}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) "
            "to the token of the cluster"
        ) from None
    except aiohttp.WSServerHandshakeError as error:
        if error.status in (401, 403):
            raise JobRefused(f"the cluster at {address} does not let you read its logs ({error.status})") from None
        raise
    except RuntimeError as error:
        text = str(error)
        if "already exists" in text:
            raise JobRefused(
                f"{address} already has a job {job}; choose another --submission-id, or follow that job: "
                f"adatsq-pipe attach {job} --address {address}"
            ) from None
        if "does not exist" in text:
            raise JobRefused(f"the cluster at {address} has no job {job}; list its jobs with `ray job list`") from None
        raise


@contextmanager
def _without_address_variables() -> Iterator[None]:
    values = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(values)


def _probe(address: str) -> None:
    """Raise JobRefused unless a dashboard answers. Ray's client would wait forever, and not say what it met instead."""
    try:
        answer = requests.get(f"{address}/api/version", timeout=PROBE_TIMEOUT, allow_redirects=False)
    except requests.exceptions.ReadTimeout:
        raise _no_dashboard(address, f"no answer within {PROBE_TIMEOUT:.0f} s") from None
    except requests.RequestException as error:
        if "RemoteDisconnected" in str(error) or "BadStatusLine" in str(error):
            raise _no_dashboard(address, "it does not speak HTTP") from None
        raise JobRefused(
            f"nothing answers at {address} ({_reason(error)}); check host and port, or open a tunnel: "
            "ssh -L 8265:localhost:8265 HEAD"
        ) from None
    if answer.status_code in (401, 403):
        return
    try:
        answer.json()["ray_version"]
    except (ValueError, KeyError, TypeError):
        raise _no_dashboard(address, f"it answers with status {answer.status_code}") from None


def _no_dashboard(address: str, reason: str) -> JobRefused:
    return JobRefused(
        f"there is no Ray dashboard at {address} ({reason}); the head needs ray[default] and "
        "`ray start --head --include-dashboard=true`; the default port is 8265"
    )


def _reason(error: Exception) -> str:
    match = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)|timed out|certificate verify failed", str(error))
    return (match.group(1) or match.group(0)) if match else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
