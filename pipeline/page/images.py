"""The pictures of a run as files: full precision, quantized, and what differs, at full size."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from adatsq_pipe.pipeline.by_kind import kind_of
from adatsq_pipe.pipeline.pictures import Picture, drawn
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.storage.tables import Row

FOLDER = "pictures"
"""Name of the folder in the run directory's `report`."""
GAIN = 8
"""The difference map shows differences so many times larger."""
FRAME_MS = 125
"""Milliseconds that a frame of a clip is shown."""
SLUG = 48
"""Most characters of a caption in a file's name."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One caption and seed: what was measured, and its three files, named relative to the report."""

    row: Row
    full: str
    quantized: str
    difference: str
    width: int
    height: int

    @property
    def kind(self) -> str:
        """The caption's kind; where captions have none, what it asks for in the built-in world; else ""."""
        return kind_of(self.row)


def write_pictures(context: Context, report: Path) -> list[Pair]:
    """Write all held-out pictures below `report`, and return them in the order of the samples.

    Captions of any script end up in a name of plain letters, with a digest where they differ in nothing else.
    """
    folder = report / FOLDER
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    found = list[Pair]()
    for place, (row, wanted, got) in enumerate(drawn(context)):
        stem = f"{place:04d}-{slug(row['prompt'])}-{row['seed']}"
        ending = "png" if wanted.ndim == 3 else "gif"
        pairs = [(wanted, got)] if wanted.ndim == 3 else list(zip(wanted, got, strict=True))
        files = {
            "fp": (full for full, _ in pairs),
            "q": (quantized for _, quantized in pairs),
            "diff": (difference(*pair) for pair in pairs),
        }
        for name, frames in files.items():
            save(frames, folder / f"{stem}-{name}.{ending}")
        full, quantized, differing = (f"{FOLDER}/{stem}-{name}.{ending}" for name in files)
        height, width = wanted.shape[-3:-1]
        found.append(Pair(row=row, full=full, quantized=quantized, difference=differing, width=width, height=height))
    return found


def slug(caption: str) -> str:
    """A caption as a part of a file's name: letters and digits of ASCII, and a digest of any other caption."""
    plain = re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:SLUG].strip("-")
    whole = caption.isascii() and plain
    return plain if whole else f"{plain}-{hashlib.sha256(caption.encode()).hexdigest()[:8]}".strip("-")


def difference(wanted: Picture, got: Picture) -> Picture:
    """|got - wanted|, GAIN times larger; values in [0, 1]."""
    result: Picture = (np.abs(got - wanted) * GAIN).clip(0, 1)
    return result


def save(frames: Iterable[Picture], path: Path) -> None:
    """Write the frames of a clip, [height, width, 3] each, as a GIF that loops, or the only one of a picture as PNG.

    One frame is in memory at a time.
    """
    images = (Image.fromarray(_bytes(frame)) for frame in frames)
    first = next(images)
    if path.suffix == ".gif":
        first.save(path, save_all=True, append_images=images, duration=FRAME_MS, loop=0)
    else:
        first.save(path)


def _bytes(picture: Picture) -> npt.NDArray[np.uint8]:
    return (np.nan_to_num(picture).clip(0, 1) * 255).round().astype(np.uint8)
