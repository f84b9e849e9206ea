"""What a call is conditioned on: prompts with their seeds, pictures and further arguments of the pipeline's call.

Pictures are stored in the run directory under the digest of their bytes, so that every machine finds them and moving
the original file changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.base.units import shards
from adatsq_pipe.storage.files import read_json_object
from adatsq_pipe.storage.rundir import RunDir


def picture_mode(model: Path) -> str:
    """The picture mode of the pipeline in the folder `model`: RGB, or RGBA if its autoencoder has four channels."""
    try:
        config = read_json_object(model / "vae" / "config.json")
    except (OSError, ValueError):
        return "RGB"
    return "RGBA" if 4 in (config.get("input_channels"), config.get("in_channels")) else "RGB"


def arguments_of(find: Callable[[str], Path], inputs: Mapping[str, Any], mode: str) -> dict[str, object]:
    """The call's arguments that one prompt brings: those of `call`, and its `images`, opened in `mode` at the path that
    `find` returns. A file with several frames (GIF) becomes a list of them."""

    def opened(digest: str) -> Image.Image | list[Image.Image]:
        with Image.open(find(digest)) as image:
            if getattr(image, "n_frames", 1) > 1:
                return [frame.convert(mode) for frame in ImageSequence.Iterator(image)]
            return image.convert(mode)

    pictures = {
        name: [opened(one) for one in images] if isinstance(images, list | tuple) else opened(images)
        for name, images in inputs.get("images", {}).items()
    }
    return {**inputs.get("call", {}), **pictures}


def collated(batch: Sequence[Mapping[str, object]]) -> dict[str, object]:
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
    return {name: _collated(name, [more[name] for more in batch]) for name in batch[0]}


def _collated(name: str, values: list[object]) -> object:
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


def _pictured(value: object) -> bool:
    return isinstance(value[0] if isinstance(value, list) and value else value, Image.Image)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """A batch of captions (or class labels) with one seed each. Its composition is fixed.

    `inputs` holds further arguments of the pipeline's call, one mapping per caption, or is empty.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    inputs: tuple[Mapping[str, object], ...] = ()

    def __post_init__(self) -> None:
        assert len(self.prompts) == len(self.seeds) and len(self.inputs) in (0, len(self.prompts))


def calibration_shards(context: Context) -> list[Conditions]:
    """The calibration captions with their seeds, in the batches that run together."""
    data = context.settings[DataSettings]
    return batched(conditions_of(context, data.prompts, data.inputs, data.seed), data.batch)


def conditions_of(
    context: Context, prompts: tuple[str, ...], inputs: tuple[dict[str, Any], ...], seed: int, draw: int = 0
) -> list[Conditions]:
    """One Conditions per caption, with its inputs and its own seed (its manifest's, shifted by `draw`)."""
    each, find, mode = [], RunDir.at(context.run).prompt_image, picture_mode(context.model.path)
    for i, prompt in enumerate(prompts):
        extra = inputs[i] if inputs else {}
        own = extra["seed"] + 1_000_003 * draw if "seed" in extra else 1_000_003 * seed + i
        more = (arguments_of(find, extra, mode),) if inputs else ()
        each.append(Conditions(prompts=(prompt,), seeds=(own,), inputs=more))
    return each


def batched(each: list[Conditions], size: int) -> list[Conditions]:
    """Conditions of one caption each, `size` to a batch."""
    return [
        Conditions(
            prompts=tuple(p for i in part for p in each[i].prompts),
            seeds=tuple(s for i in part for s in each[i].seeds),
            inputs=tuple(row for i in part for row in each[i].inputs),
        )
        for part in shards(len(each), size)
    ]
