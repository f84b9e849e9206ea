"""A small hub: repositories of files over HTTP, as huggingface_hub asks for them, on a free port of this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants


@dataclass
class Repository:
    """Files of a model at every commit. `token` is what a reader needs for a gated or private one."""

    commits: dict[str, dict[str, bytes]]
    revisions: dict[str, str]
    gated: bool = False
    private: bool = False
    token: str = ""
    messages: list[str] = field(default_factory=list)
    """Of the commits that came over HTTP."""

    @classmethod
    def of(cls, folder: Path, **options: object) -> Repository:
        """The files of a folder, as one commit of the branch main."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        made = cls({}, {}, **options)  # type: ignore[arg-type]
        made.commit(files)
        return made

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Put these files on a branch. Returns the commit."""
        parts = [f"{name} {hashlib.sha1(files[name]).hexdigest()}" for name in sorted(files)]
        commit = hashlib.sha1("\n".join([*self.commits, *parts]).encode()).hexdigest()
        self.commits[commit] = files
        self.revisions[branch] = commit
        return commit

    def at(self, revision: str) -> str:
        return revision if revision in self.commits else self.revisions.get(revision, "")


@dataclass
class Hub:
    """The repositories by name, what was asked, and how the hub behaves."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(method, path) of every request."""
    status: int = 0
    """What everything is answered with, if it is not 0."""
    url: str = ""
    writer: str = "hf_writer"
    """The token that may write."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files that were sent, by their SHA-256."""

    def use(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        """Have huggingface_hub ask this hub, without a token, with its caches in `folder`."""
        patch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        patch.setattr(constants, "HF_ASSETS_CACHE", str(folder / "assets"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # this hub speaks LFS alone
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)

    def sent(self) -> set[str]:
        """Names of the files whose bytes were asked for."""
        return {path.split("/resolve/")[1].partition("/")[2] for method, path in self.asked if _is_file(method, path)}


def _is_file(method: str, path: str) -> bool:
    return method == "GET" and "/resolve/" in path


@contextmanager
def hub() -> Iterator[Hub]:
    """A running hub without repositories."""
    made = Hub()

    class Handler(_Handler):
        state = made

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def do_PUT(self) -> None:
        self.state.asked.append((self.command, self.path))
        data = self._body()
        assert hashlib.sha256(data).hexdigest() == self.path.removeprefix("/objects/")
        self.state.objects[self.path.removeprefix("/objects/")] = data
        self._send(200, b"", {})

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        self.state.asked.append((self.command, path))
        if self.state.status:
            return self._refuse(self.state.status)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != self.state.writer:
            return self._refuse(403)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        name, kind, revision = "/".join(parts[:2]).removesuffix(".git"), parts[2], "/".join(parts[3:])
        found = self.state.repositories.get(name)
        if found is None:
            return self._refuse(404, "RepoNotFound")
        if kind == "branch":
            known = revision in found.revisions
            found.revisions.setdefault(revision, found.revisions.get("main", ""))
            return self._refuse(409) if known else self._json({})
        if kind == "preupload":
            return self._json({"files": [_mode(file) for file in json.loads(body)["files"]]})
        if kind == "info":
            asked = json.loads(body)["objects"]
            return self._json({"transfer": "basic", "objects": [self._object(one) for one in asked]})
        return self._commit(found, name, revision, [json.loads(line) for line in body.splitlines()])

    def _create(self, asked: dict[str, object]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.state.repositories:
            return self._send(409, json.dumps({"url": f"{self.state.url}/{name}"}).encode(), {})
        private = asked.get("private") is True or asked.get("visibility") == "private"
        made = self.state.repositories[name] = Repository({}, {}, private=private, token=self.state.writer)
        made.commit({})
        self._json({"url": f"{self.state.url}/{name}"})

    def _object(self, asked: dict[str, object]) -> dict[str, object]:
        there = asked["oid"] in self.state.objects
        upload = {"upload": {"href": f"{self.state.url}/objects/{asked['oid']}"}}
        return asked if there else {**asked, "actions": upload}

    def _commit(self, found: Repository, name: str, revision: str, lines: list[dict[str, Any]]) -> None:
        files = dict(found.commits[found.at(revision)])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                found.messages.append(value["summary"])
        commit = found.commit(files, revision)
        self._json({"commitUrl": f"{self.state.url}/{name}/commit/{commit}", "commitOid": commit})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = list[bytes]()
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _read(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.asked.append((self.command, path))
        if self.state.status:
            return self._refuse(self.state.status)
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        name, kind, revision = "/".join(parts[:2]), (parts[2:3] or [""])[0], (parts[3:4] or ["main"])[0]
        found = self.state.repositories.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == "wrong":
            return self._refuse(401, message="Invalid credentials in Authorization header")
        if found is None or (found.private and token != found.token):
            return self._refuse(404 if token else 401, "RepoNotFound")
        commit = found.at(revision)
        if not commit:
            return self._refuse(404, "RevisionNotFound")
        files = found.commits[commit]
        if api and kind == "tree":
            return self._json([_entry(file, data) for file, data in sorted(files.items())])
        if api:
            siblings = [{"rfilename": file} for file in sorted(files)]
            return self._json(
                {"id": name, "modelId": name, "sha": commit, "private": found.private, "siblings": siblings}
            )
        if found.gated and token != found.token:
            return self._refuse(403 if token else 401, "GatedRepo")
        data = files.get("/".join(parts[4:]))
        if data is None:
            return self._refuse(404, "EntryNotFound")
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._send(206 if first else 200, data[first:], headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X-Error-Code": code} if code else {}
        self._send(status, b"{}", headers | ({"X-Error-Message": message} if message else {}))

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _mode(file: dict[str, Any]) -> dict[str, object]:
    """How a file is to come: weights by LFS, the rest in the commit."""
    mode = "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


def _entry(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name}
