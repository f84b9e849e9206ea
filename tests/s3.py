"""An S3-compatible server (moto's) of the test's own, and a door before it that is slow and fails now and then."""

from __future__ import annotations

import http.client
import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def served() -> Iterator[int]:
    """Port of the server on loopback."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


class Door(ThreadingHTTPServer):
    """Passes every request on to `behind` after `latency` seconds; a share `failing` is answered with a 500."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, behind: int, *, latency: float, failing: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.latency, self.failing = behind, latency, failing
        self.random, self.counts, self.guard = random.Random(1), {"passed": 0, "failed": 0}, threading.Lock()

    def fails(self) -> bool:
        with self.guard:
            failed = self.random.random() < self.failing
            self.counts["failed" if failed else "passed"] += 1
        return failed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Door

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _pass(self) -> None:
        body = self._body()
        time.sleep(self.server.latency)
        if self.server.fails():
            self._answer(500, {}, b"<Error><Code>InternalError</Code><Message>try again</Message></Error>")
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "content-length")}
        link = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        link.request(self.command, self.path, body=body, headers=headers)
        got = link.getresponse()
        data = got.read()
        self._answer(got.status, dict(got.getheaders()), data)
        link.close()

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass


@contextmanager
def door(behind: int, *, latency: float = 0.0, failing: float = 0.0) -> Iterator[Door]:
    """A Door before the server at port `behind`."""
    made = Door(behind, latency=latency, failing=failing)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()


def environment(port: int) -> dict[str, str]:
    """What a client of the server at `port` has in its environment (the credentials are moto's, of no worth)."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
