"""The report's pictures: full precision above quantized."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from adatsq_pipe.pipeline.plots.figures import pyplot
from adatsq_pipe.pipeline.plots.glyphs import PLAIN, escaped, fonts_for, on_one_line, width_of
from adatsq_pipe.pipeline.samples import quantized_units, samples
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.storage import arrays, tables
from adatsq_pipe.storage.files import write_text

PICTURES = 8
BELOW, ABOVE = 0.492, 0.328
"""Inches for the captions and for the title."""

Picture: TypeAlias = npt.NDArray[np.floating]
"""[height, width, 3] or, of a video, [frames, height, width, 3]; values in [0, 1]."""


def draw(context: Context, path: Path, title: str, *, count: int = PICTURES, inches: float = 1.7) -> str:
    """Draw the first `count` captions to `path`, each `inches` wide: full precision above quantized, captions below.
    Videos show one frame.

    Where no installed font has a caption's characters, its number stands in its place, and a text file beside the
    picture has all captions. Returns a line that says so, or "".
    """
    plt = pyplot()
    columns = [(row["prompt"], wanted, got) for row, wanted, got in itertools.islice(drawn(context), count)]
    strips = _of_one_size([[_framed(wanted) for _, wanted, _ in columns], [_framed(got) for *_, got in columns]])
    height, width = strips[0][0].shape[:2]
    size = (inches * len(columns) + 0.4, 2 * inches * height / width + 0.7)
    figure, letters = plt.figure(figsize=size), 7 if inches < 2 else 10
    axis = figure.add_axes((0.03, BELOW / size[1], 0.96, 1 - (BELOW + ABOVE) / size[1]))
    axis.imshow(np.concatenate([np.concatenate(strip, 1) for strip in strips]))
    axis.set_xticks([width * (i + 0.5) for i in range(len(columns))])
    captions = [on_one_line(prompt) for prompt, *_ in columns]
    fonts = [fonts_for(caption) for caption in captions]
    fits = round(22 * inches / 1.7 * 7 / letters)
    both = enumerate(zip(captions, fonts, strict=True), 1)
    labels = [_wrapped(caption, fits) if known else f"[{i}]" for i, (caption, known) in both]
    for label, known in zip(axis.set_xticklabels(labels, fontsize=letters), fonts, strict=True):
        label.set_fontfamily(list(known) or [PLAIN])
    axis.set_yticks([height / 2, height * 1.5])
    axis.set_yticklabels(["full precision", "quantized"], fontsize=letters + 1, rotation=90, va="center")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    heading = escaped(on_one_line(title))
    axis.set_title(heading, fontsize=letters + 2, fontfamily=list(fonts_for(heading)))
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return _beside(path.with_suffix(".txt"), [prompt for prompt, *_ in columns], fonts)


def drawn(context: Context) -> Iterator[tuple[tables.Row, Picture, Picture]]:
    """(measurements, full precision, quantized) of every held-out picture, in the order of the samples."""
    for row, (wanted, got) in zip(samples(context), _pairs(context), strict=True):
        yield row, wanted, got


def _pairs(context: Context) -> Iterator[tuple[Picture, Picture]]:
    """(full precision, quantized) in the same order, mapped into memory unit by unit."""
    evaluate, reference = context.manifest("evaluate"), context.manifest("reference")
    for unit in quantized_units(context):
        got = arrays.mapped(evaluate.local_folder(unit), "pictures")
        wanted = arrays.mapped(reference.local_folder(unit.replace("quantized", "draw")), "pictures")
        yield from zip(wanted, got, strict=True)


def _beside(path: Path, prompts: list[str], fonts: list[tuple[str, ...]]) -> str:
    """Write the captions to `path` if the picture cannot show one of them; what to say of it."""
    lacking = sum(not known for known in fonts)
    if not lacking:
        path.unlink(missing_ok=True)
        return ""
    write_text(path, "".join(f"[{i}] {prompt}\n" for i, prompt in enumerate(prompts, 1)))
    return (
        f"no installed font has the characters of {lacking} of the {len(prompts)} captions: they have numbers in the "
        f"picture, and stand in {path.name}"
    )


def _of_one_size(strips: list[list[Picture]]) -> list[list[Picture]]:
    """Framed pictures, each laid on white of the largest height and width."""
    height, width = (max(picture.shape[axis] for strip in strips for picture in strip) for axis in (0, 1))

    def laid(picture: Picture) -> Picture:
        return np.pad(
            picture, ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0)), constant_values=1.0
        )

    return [[laid(picture) for picture in strip] for strip in strips]


def _framed(picture: Picture) -> Picture:
    """A picture (of a video the middle frame) with a white border."""
    still = picture if picture.ndim == 3 else picture[len(picture) // 2]
    edge = max(1, still.shape[0] // 24)
    return np.pad(still.clip(0, 1), ((edge, edge), (edge, edge), (0, 0)), constant_values=1.0)


def _wrapped(text: str, width: int) -> str:
    """The text in up to three lines of so many columns; a wide character takes two."""
    characters = max(1, width * len(text) // max(width_of(text), 1))
    return "\n".join(textwrap.wrap(text, min(width, characters))[:3])
