"""Where a model comes from, as its card says: the repository on the hub, the licence, and the task it is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from adatsq_pipe.pipeline.hub_id import NO_ORGANIZATION
from adatsq_pipe.stages.export.model_card import INHERITED, metadata_of
from adatsq_pipe.storage.files import read_json_object
from adatsq_pipe.storage.model_files import copied_files, model_name

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CACHED = re.compile(r"(?:^|/)models--([\w.-]+?)--([\w.-]+)(?:/|$)")
_EDITS = re.compile(r"Img2Img|ImageToImage|Image2Image|Inpaint|Edit|Kontext|Upscale")
_FROM_PICTURE = re.compile(r"ImageToVideo|Image2Video|Img2Vid|I2V")
_FROM_CLIP = re.compile(r"VideoToVideo|Video2Video")
_FROM_CLASS = ("DiTPipeline",)
"""Pipelines that are called with a class of pictures, not with a text."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What is known of the full-precision pipeline that a model was made from."""

    name: str
    """As people call it: the repository where it is known, else the folder."""
    repository: str
    """`org/name` on the hub; "" if the folder does not say."""
    ancestors: tuple[str, ...]
    """Where `repository` is "": what the folder's own card names as its base."""
    pipeline: str
    """Class name of the pipeline."""
    inherited: dict[str, object]
    """Licence and language, from the folder's card."""
    task: str
    """The hub's `pipeline_tag` that the folder's card names, or ""."""


def origin_of(source: Path) -> Origin:
    """Read it from the folder: from its place in the hub's cache, its model_index.json and its card."""
    index, card = read_json_object(source / "model_index.json"), metadata_of(source)
    cached = model_name(source)
    repository = cached if "/" in cached else _named(index.get("_name_or_path"))
    kind = index.get("_class_name", "")
    task, bases = card.get("pipeline_tag"), card.get("base_model")
    listed = [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []
    return Origin(
        name=repository or cached,
        repository=repository,
        ancestors=() if repository else tuple(base for base in listed if _named(base)),
        pipeline=kind[-1] if isinstance(kind, list) else str(kind),
        inherited=_licence({key: card[key] for key in INHERITED if key in card}, source, repository),
        task=task if isinstance(task, str) else "",
    )


def task_of(origin: Origin, *, clips: bool, images: bool) -> str:
    """The hub's `pipeline_tag`: what the original's card says, else by the class, by whether it draws `clips`, and by
    whether its captions came with `images`."""
    if origin.task:
        return origin.task
    if origin.pipeline in _FROM_CLASS:
        return "unconditional-image-generation"
    if clips:
        if _FROM_CLIP.search(origin.pipeline):
            return "video-to-video"
        return "image-to-video" if images or _FROM_PICTURE.search(origin.pipeline) else "text-to-video"
    return "image-to-image" if images or _EDITS.search(origin.pipeline) else "text-to-image"


def _named(value: object) -> str:
    """The repository that a `_name_or_path` names, of the hub or of its cache on some machine; "" for another path."""
    if not isinstance(value, str):
        return ""
    if cached := _CACHED.search(value):
        return f"{cached[1]}/{cached[2]}"
    plain = _REPOSITORY.fullmatch(value) and value.partition("/")[0].lower() not in NO_ORGANIZATION
    return value if plain else ""


def _licence(inherited: dict[str, object], source: Path, repository: str) -> dict[str, object]:
    """A `license_link` to a file of the original: as it is where the copy has the file, else into the repository."""
    link = inherited.get("license_link")
    if not isinstance(link, str) or "://" in link or link in copied_files(source):
        return inherited
    if repository:
        return {**inherited, "license_link": f"https://huggingface.co/{repository}/blob/main/{link}"}
    return {key: value for key, value in inherited.items() if key != "license_link"}
