"""What may stand at an address instead of a dashboard of the right Ray: one line each, at once."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from packaging.requirements import Requirement

from adatsq_pipe.cluster import dashboard
from adatsq_pipe.cluster.errors import JobRefused

RAY = Requirement("ray>=2.54,<2.62")


@contextmanager
def _serving(*answers: tuple[int, str]) -> Iterator[str]:
    """A server that gives these answers in turn, the last one for ever."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _version(ray: str) -> tuple[int, str]:
    return 200, json.dumps({"version": "4", "ray_version": ray, "ray_commit": ""})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, "Unauthorized"), ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH", "(401)")),
        ((403, "Forbidden"), ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH", "(403)")),
        ((404, "not here"), ("no Ray dashboard", "404", "--include-dashboard=true")),
        ((200, "<html>a shop</html>"), ("no Ray dashboard", "200")),
        (_version("2.40.0"), ("runs Ray 2.40.0", "<2.62,>=2.54", "start the cluster")),
        (_version("2.99.0"), ("runs Ray 2.99.0",)),
        (_version("1.2.0"), ("1.2.0",)),
    ],
)
def test_the_wrong_answer(answer: tuple[int, str], words: tuple[str, ...]) -> None:
    with _serving(answer) as address, pytest.raises(JobRefused) as refused:
        dashboard.connect(address, RAY)
    line = str(refused.value)
    assert address in line and "\n" not in line
    for word in words:
        assert word in line, line


def test_the_right_answer_wherever_the_environment_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with _serving(_version("2.60.0")) as address:
        assert dashboard.connect(address, RAY).get_address() == address
    assert os.environ["RAY_ADDRESS"] == os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:1"


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(JobRefused, match=f"nothing answers at http://127.0.0.1:{port} .Connection refused.*check host"):
        dashboard.connect(f"http://127.0.0.1:{port}", RAY)
    with pytest.raises(JobRefused, match=r"nothing answers at http://nowhere\.invalid:8265"):
        dashboard.connect("http://nowhere.invalid:8265", RAY)


@pytest.mark.parametrize(("said", "words"), [(b"\x00\x00\x12\x04", "does not speak HTTP"), (b"", "no answer within")])
def test_another_protocol_and_silence(said: bytes, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "PROBE_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            near, _ = server.accept()
            with near:
                near.recv(4096)
                near.sendall(said)
                if not said:
                    near.recv(4096)

        threading.Thread(target=speak, daemon=True).start()
        with pytest.raises(JobRefused, match=f"there is no Ray dashboard at .*{words}"):
            dashboard.connect(f"http://127.0.0.1:{server.getsockname()[1]}", RAY)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://head:10001", "http://head:8265"),
        ("head:8265", "http://head:8265"),
        ("head", "http://head:8265"),
        ("http://", "http://HEAD:8265"),
        ("http://head:8265?x=1", "not the address of a dashboard"),
        ("http://head:port", "is not a number"),
    ],
)
def test_what_is_no_address(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dashboard.check_address(address)


@pytest.mark.parametrize("address", ["http://me:hunter2@head:8265", "ray://me:hunter2@head", "http://me:hunter2@h:x"])
def test_a_password_is_neither_taken_nor_repeated(address: str) -> None:
    with pytest.raises(ValueError, match="leave it out") as refused:
        dashboard.check_address(address)
    assert "hunter2" not in str(refused.value)


def test_an_address_loses_its_trailing_slash() -> None:
    assert dashboard.check_address("https://head.example/ray/") == "https://head.example/ray"
