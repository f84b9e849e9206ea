"""The switch with which Ray listens on loopback alone."""

from __future__ import annotations

import os

import pytest

from adatsq_pipe.cluster import loopback

SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def test_a_local_ray_is_bound_to_loopback_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "")
    monkeypatch.delenv(SWITCH)
    loopback.bind()
    assert os.environ[SWITCH] == "0"
    monkeypatch.setenv(SWITCH, "1")
    loopback.bind()
    assert os.environ[SWITCH] == "1"
