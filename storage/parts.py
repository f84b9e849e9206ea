"""Digests of the tensors in one unit's pack, so that who reads a few of many hashes these alone.

`parts.json` lies beside the pack, and the unit's marker vouches for both. It has the place and the SHA-256 of every
tensor's bytes, and one SHA-256 of all other bytes of the pack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from adatsq_pipe.storage.files import Stamp, read_json_object, stamp_of
from adatsq_pipe.storage.fingerprint import Plain, canonical
from adatsq_pipe.storage.pack import PACK, Span

PARTS = "parts.json"
_PIECE = 2**20


def write(folder: Path, spans: Mapping[str, Span], digests: Mapping[str, str]) -> None:
    """Write `parts.json` for the pack in `folder`, by the tensors' names. What is not a tensor's is hashed here."""
    tensors: Plain = {name: [span.start, span.size, digests[name]] for name, span in spans.items()}
    rest = _digest(folder / PACK, _others(list(spans.values()), (folder / PACK).stat().st_size))
    (folder / PARTS).write_text(canonical({"rest": rest, "tensors": tensors}), "utf-8")


def altered(folder: Path, names: Sequence[str], *, once: bool) -> list[str]:
    """Those of the tensors `names` whose bytes in the pack are not those that `parts.json` has digests of; all of them
    if anything else in the pack is not. With `once`, what this process has hashed is hashed again only if the pack was
    written since."""
    path = folder / PACK
    stamp = stamp_of(path)
    known = _read(folder / PARTS, stamp_of(folder / PARTS), size=stamp[2])

    def differs(spans: Sequence[Span], wanted: str) -> bool:
        return (_digest_once(path, tuple(spans), stamp) if once else _digest(path, spans)) != wanted

    if differs(known.others, known.rest):
        return list(names)
    return [name for name in names if name not in known.tensors or differs(*known.tensors[name])]


@dataclass(frozen=True)
class _Parts:
    """What `parts.json` says of a pack: where every tensor lies, with its digest, and the same of all other bytes."""

    tensors: Mapping[str, tuple[tuple[Span], str]]
    others: tuple[Span, ...]
    rest: str


@lru_cache(maxsize=256)
def _read(path: Path, stamp: Stamp, size: int) -> _Parts:
    """`size` is the pack's. Read once, until the file is replaced."""
    body = read_json_object(path)
    tensors = {name: ((Span(start, length),), str(sha)) for name, (start, length, sha) in body["tensors"].items()}
    return _Parts(tensors, tuple(_others([span for (span,), _ in tensors.values()], size)), str(body["rest"]))


def _others(spans: Sequence[Span], size: int) -> list[Span]:
    """What lies before, between and behind the spans in a file of `size` bytes."""
    found, place = list[Span](), 0
    for span in sorted(spans, key=lambda span: span.start):
        found.append(Span(place, span.start - place))
        place = span.start + span.size
    return [*found, Span(place, size - place)]


@lru_cache(maxsize=2**16)
def _digest_once(path: Path, spans: tuple[Span, ...], stamp: Stamp) -> str:
    """`stamp` is part of the cache's key, so that a replaced file is hashed again."""
    return _digest(path, spans)


def _digest(path: Path, spans: Sequence[Span]) -> str:
    """SHA-256 of these bytes of a file, one after the other."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        for span in spans:
            file.seek(span.start)
            left = span.size
            while left > 0 and (data := file.read(min(left, _PIECE))):
                found.update(data)
                left -= len(data)
    return found.hexdigest()
