"""Prompts from a file: text with one to a line, or a manifest (JSON, JSONL, CSV, Parquet) with a column `prompt`.

A manifest may have more columns: `images` (argument of the pipeline's call -> path, or a list of paths, relative to
the manifest), `call` (further arguments), `seed` and `kind` (results are grouped by it). It ignores other columns. An
image is identified by its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from adatsq_pipe.pipeline.prompt_rows import COLUMN, rows
from adatsq_pipe.stages.base.settings import check_call, checked_kind
from adatsq_pipe.storage.fingerprint import file_digest

LARGEST_SEED = 2**62
"""Of a row: further draws of its caption add to it, and tables hold 63 bits."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The contents of a file: prompts in order; `kinds`, "" where a prompt has none, and `inputs`, further arguments of
    each (both empty if none has any); and the images by their digest."""

    prompts: list[str]
    kinds: list[str]
    inputs: list[dict[str, object]]
    images: Mapping[str, Path]


def read(path: Path) -> Prompts:
    """The prompts of the file in order, empty lines left out. ValueError with the file and what it lacks."""
    found = rows(path)
    if not found:
        raise ValueError(f"{path} holds no prompts")
    for where, row in found:
        _check_text(where, row[COLUMN])
    images: dict[str, Path] = {}
    inputs = [_more(where, row, path.parent, images) for where, row in found]
    kinds = [_kind(where, row.get("kind")) for where, row in found]
    return Prompts(
        prompts=[row[COLUMN] for _, row in found],
        kinds=kinds if any(kinds) else [],
        inputs=inputs if any(inputs) else [],
        images=images,
    )


def _kind(where: str, kind: object) -> str:
    try:
        return checked_kind(kind)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_text(where: str, prompt: object) -> None:
    """Raise ValueError if a prompt is no text that can be stored."""
    if not isinstance(prompt, str):
        raise ValueError(f"{where}: its {COLUMN} is no text; write it in quotes (an object as the JSON text of it)")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: its {COLUMN} holds half a character (a lone surrogate)") from None


def _more(where: str, row: Mapping[str, Any], beside: Path, images: dict[str, Path]) -> dict[str, object]:
    """The row besides its prompt, with images as their digests."""
    objects = {key: _object(where, key, row[key]) for key in ("images", "call") if row.get(key)}
    more: dict[str, object] = {key: value for key, value in objects.items() if key == "call"}
    try:
        check_call(objects.get("call", {}))
    except ValueError as error:
        raise ValueError(f"{where}: call.{error}") from None
    if "images" in objects:
        more["images"] = {
            name: [_image(where, beside, one, images) for one in value]
            if isinstance(value, list)
            else _image(where, beside, value, images)
            for name, value in objects["images"].items()
        }
    if row.get("seed") is not None:
        if not isinstance(row["seed"], int) or isinstance(row["seed"], bool) or not 0 <= row["seed"] <= LARGEST_SEED:
            raise ValueError(
                f"{where}: seed is {row['seed']!r}; write a whole number from 0 to {LARGEST_SEED}, or leave it out"
            )
        more["seed"] = row["seed"]
    return more


def _object(where: str, key: str, value: Any) -> dict[str, Any]:
    """A mapping, or the JSON text of one (as Parquet may hold it); members that are null are left out."""
    try:
        members = json.loads(value) if isinstance(value, str) else value
        return {str(name): item for name, item in dict(members).items() if item is not None}
    except (ValueError, TypeError):
        raise ValueError(f'{where}: {key} is {value!r}; write an object, e.g. {{"image": "cat.png"}}') from None


def _image(where: str, beside: Path, name: object, images: dict[str, Path]) -> str:
    path = beside / str(name)
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(
            f"{where}: {path} is no picture that can be read ({error}); of a clip, list its frames, or give a GIF"
        ) from None
    digest = file_digest(path)
    images[digest] = path
    return digest
