"""Units of a stage as tests commit them, and digests computed a second time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from adatsq_pipe.storage.manifest import Manifest


def sha(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def plain(value: object) -> bytes:
    """Canonical text: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def commit(manifest: Manifest, unit: str, value: object = None, **files: bytes) -> None:
    """A unit with these files."""
    folder = manifest.open_unit(unit)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    manifest.commit(unit, value=value, seconds={"total": 2.0})


def unit(tmp_path: Path) -> Manifest:
    """A stage with one unit."""
    manifest = Manifest("capture", tmp_path)
    (manifest.open_unit("a/0") / "bytes").write_bytes(b"hello")
    assert not manifest.done("a/0")
    manifest.commit("a/0", value={"x": 1}, seconds={"total": 2.0})
    return manifest


def spoil(path: Path, place: int = 0) -> None:
    """Change a bit, and keep the size."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
