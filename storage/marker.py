"""The marker of a finished unit: a JSON file that lists the unit's files and carries a digest of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from adatsq_pipe.storage.files import Stamp, is_safe_relative, stamp_of
from adatsq_pipe.storage.fingerprint import Plain, digest, digest_of_json


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What a finished unit vouches for: `files` maps a name to (bytes, SHA-256); `value` is its small JSON result.

    `seconds` are wall times by kind, `host` the machine that ran it.
    """

    unit: str
    files: Mapping[str, tuple[int, str]]
    value: Any = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    host: str = ""
    micro_batch: Mapping[str, int] | None = None
    """Batch size before (`from`) and after (`to`) running out of memory. Not part of the digest: another batch size
    changes only the last bits."""
    peak: int = 0
    """Peak bytes of GPU memory allocated, with the model's weights; 0 on a CPU."""

    @property
    def calls(self) -> float:
        """Denoiser calls that the unit accounts for, maybe a fraction; on disk they stand among the seconds."""
        return self.seconds.get("calls", 0.0)

    @property
    def resident(self) -> int:
        """Most bytes of main memory that the worker's process held, from the unit before to the end of this one; 0 if
        it was not recorded. On disk it stands among the seconds."""
        return int(self.seconds.get("resident", 0))

    @property
    def digest(self) -> str:
        """Digest of the result: the names and digests of the files, and the value. Times and hosts do not enter."""
        return digest({"files": {name: entry[1] for name, entry in self.files.items()}, "value": self.value})

    def to_json(self) -> str:
        """The text of the marker's file. Raises TypeError if `value` has no canonical text."""
        body: dict[str, Plain] = {
            "unit": self.unit,
            "files": self.files,
            "value": self.value,
            "seconds": self.seconds,
            "host": self.host,
            **({"micro_batch": self.micro_batch} if self.micro_batch else {}),
            **({"peak": self.peak} if self.peak else {}),
        }
        return json.dumps({**body, "self": digest(body)}, indent=1)


def read_marker(path: str, stamp: Stamp | None = None) -> Marker | None:
    """The marker in the file `path`, None if it is not as it was written. Raises FileNotFoundError.

    Markers are cached: a plan reads each of them several times. `stamp` is that of the file, if it is known already.
    """
    return _parse(path, stamp or stamp_of(path))


@lru_cache(maxsize=2**16)
def _parse(path: str, stamp: Stamp) -> Marker | None:
    """`stamp` is part of the cache's key, so that a replaced file is read again."""
    try:
        body = json.loads(_bytes(path, stamp[2]).decode())
        if body.pop("self") != digest_of_json(body):
            return None
        files = {name: (int(size), str(sha)) for name, (size, sha) in body.pop("files").items()}
        if not all(map(is_safe_relative, (*files, body["unit"]))):
            return None
        return Marker(files=files, **body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _bytes(path: str, size: int) -> bytes:
    """The first `size` bytes of a file: a file object would look at the disk three times more."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, size)
    finally:
        os.close(handle)
