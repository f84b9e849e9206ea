"""A Zarr group in one file: an uncompressed zip, as zarr's ZipStore reads it, in which every chunk can be mapped.

Equal contents give equal bytes: a member has no time, and its place follows from the sizes of those before it. Members
begin at multiples of ALIGNED bytes.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, BinaryIO

from adatsq_pipe.storage.files import Stamp, stamp_of

PACK = "tensors.zarr.zip"
ALIGNED = 64
PIECE = 2**24
"""Bytes that are written at once, so that what reads them meanwhile finds them in a cache."""
_HEADER = struct.Struct("<4s5H3L2H")
"""A member's header up to its name: the last two numbers are the lengths of the name and of the extra field."""
_PADDING = 0xD935
"""The kind of an extra field that holds nothing but padding, as Android's tools have it."""


@dataclass(frozen=True)
class Chunk:
    """A chunk to be written: its key, its bytes in all, and the buffers that make it up, made as they are written."""

    key: str
    size: int
    parts: Iterable[memoryview]


@dataclass(frozen=True)
class Span:
    """Where a chunk lies in its file."""

    start: int
    size: int


def write(
    path: Path, described: Mapping[str, bytes], chunks: Iterable[Chunk], see: Callable[[str, memoryview], object]
) -> dict[str, Span]:
    """Write a group's metadata documents and its chunks to the new file `path`; where each chunk lies, by its key.

    `see` gets the key of every chunk with its bytes, piece by piece. Raises ValueError if a chunk is not as long as it
    says.
    """
    spans = dict[str, Span]()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as pack:
        for key, data in described.items():
            with _member(file, pack, key, len(data)) as member:
                member.write(data)
        for chunk in chunks:
            with _member(file, pack, chunk.key, chunk.size) as member:
                start = file.tell()
                for part in chunk.parts:
                    for place in range(0, part.nbytes, PIECE):
                        member.write(part[place : place + PIECE])
                        see(chunk.key, part[place : place + PIECE])
                spans[chunk.key] = Span(start, file.tell() - start)
            if spans[chunk.key].size != chunk.size:
                raise ValueError(f"{chunk.key} has {spans[chunk.key].size} bytes in place of {chunk.size}")
    return spans


def _member(file: BinaryIO, pack: zipfile.ZipFile, key: str, size: int) -> AbstractContextManager[IO[bytes]]:
    """A new member of `size` bytes, opened for writing."""
    info = zipfile.ZipInfo(key)  # its time is 1980-01-01, which is none
    info.file_size, info.external_attr, info.create_system = size, 0o644 << 16, 3
    large = size * 1.05 > zipfile.ZIP64_LIMIT
    before = file.tell() + _HEADER.size + len(key.encode()) + 20 * large + 4
    padding = -before % ALIGNED
    info.extra = struct.pack("<2H", _PADDING, padding) + bytes(padding)
    return pack.open(info, "w", force_zip64=large)


@dataclass(frozen=True)
class Contents:
    """What a file holds: the group's metadata documents by key, and where every chunk lies."""

    documents: Mapping[str, bytes]
    chunks: Mapping[str, Span]


def contents(path: Path) -> Contents:
    """What the file holds; read once, until the file is replaced. Raises FileNotFoundError, or BadZipFile."""
    return _contents(path, stamp_of(path))


@lru_cache(maxsize=256)
def _contents(path: Path, stamp: Stamp) -> Contents:
    documents, chunks = dict[str, bytes](), dict[str, Span]()
    with path.open("rb") as file, zipfile.ZipFile(file) as pack:
        for info in pack.infolist():
            if info.filename.rpartition("/")[2] == "zarr.json":
                documents[info.filename] = pack.read(info)
                continue
            file.seek(info.header_offset)
            *_, name, extra = _HEADER.unpack(file.read(_HEADER.size))
            chunks[info.filename] = Span(info.header_offset + _HEADER.size + name + extra, info.file_size)
    return Contents(documents, chunks)
