"""What prompts come with besides their text: pictures and further arguments of the pipeline's call, and seeds.

Pictures lie in the run directory under the digest of their bytes, so every machine finds them and a file that is moved
changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adatsq_pipe.stages.base import StageError

if TYPE_CHECKING:
    from PIL.Image import Image


def picture_mode(model: Path) -> str:
    """How the pipeline in the folder `model` takes pictures: RGB, or RGBA if its autoencoder has four channels."""
    try:
        said = json.loads((model / "vae" / "config.json").read_text())
    except (OSError, ValueError):
        return "RGB"
    return "RGBA" if 4 in (said.get("input_channels"), said.get("in_channels")) else "RGB"


def arguments_of(find: Callable[[str], Path], given: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """The call's arguments that one prompt brings: `call` as it is, `images` opened in `mode`, where `find` says; of a
    file with several frames (GIF) a list of them."""

    def opened(digest: str) -> Image | list[Image]:
        from PIL import Image, ImageSequence

        with Image.open(find(digest)) as image:
            if getattr(image, "n_frames", 1) > 1:
                return [frame.convert(mode) for frame in ImageSequence.Iterator(image)]
            return image.convert(mode)

    pictures = {
        name: [opened(one) for one in said] if isinstance(said, list | tuple) else opened(said)
        for name, said in given.get("images", {}).items()
    }
    return {**given.get("call", {}), **pictures}


def collated(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of one call for all prompts of a batch: pictures become lists, anything else must be the same.

    Raises StageError where it is not.
    """
    if not batch:
        return {}
    if others := [more for more in batch if set(more) != set(batch[0])]:
        differing = sorted(set(others[0]) ^ set(batch[0]))
        raise StageError(
            f"of the prompts of one batch some come with {', '.join(differing)} and some without; give it to all, or "
            "set data.batch and evaluate.batch to 1"
        )
    return {name: _together(name, [more[name] for more in batch]) for name in batch[0]}


def _together(name: str, values: list[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    if _pictured(values[0]):
        return values
    if any(value != values[0] for value in values):
        raise StageError(
            f"{name} differs inside a batch of prompts ({values[0]!r} and others), and a call has one; "
            "set data.batch and evaluate.batch to 1"
        )
    return values[0]


def _pictured(value: Any) -> bool:
    from PIL.Image import Image

    return isinstance(value[0] if isinstance(value, list) and value else value, Image)
