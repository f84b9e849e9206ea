"""The report's pictures: full precision above quantized."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from adatsq_pipe.pipeline.plots.figures import pyplot
from adatsq_pipe.pipeline.samples import quantized_units
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.storage import arrays, tables

PICTURES = 8

Picture: TypeAlias = npt.NDArray[np.floating]
"""[height, width, 3] or, of a video, [frames, height, width, 3]; values in [0, 1]."""


def draw(context: Context, path: Path, title: str) -> None:
    """Draw the first captions to `path`: full precision above quantized, captions below. Videos show one frame."""
    plt = pyplot()
    manifest, columns = context.manifest("evaluate"), list[tuple[str, Picture, Picture]]()
    for unit in quantized_units(context):
        rows = tables.read(manifest.local_folder(unit) / "samples.parquet")
        got = arrays.read(manifest.local_folder(unit), "pictures")
        drawn = context.manifest("reference").local_folder(unit.replace("quantized", "draw"))
        wanted = arrays.read(drawn, "pictures")
        columns += [(row["prompt"], w, g) for row, w, g in zip(rows, wanted, got, strict=True)]
    columns = columns[:PICTURES]
    strips = _of_one_size([[_framed(wanted) for _, wanted, _ in columns], [_framed(got) for *_, got in columns]])
    height, width = strips[0][0].shape[:2]
    figure = plt.figure(figsize=(1.7 * len(columns) + 0.4, 4.1))
    axis = figure.add_axes((0.03, 0.12, 0.96, 0.8))
    axis.imshow(np.concatenate([np.concatenate(strip, 1) for strip in strips]))
    axis.set_xticks([width * (i + 0.5) for i in range(len(columns))])
    axis.set_xticklabels([_wrapped(column[0]) for column in columns], fontsize=7)
    axis.set_yticks([height / 2, height * 1.5])
    axis.set_yticklabels(["full precision", "quantized"], fontsize=8, rotation=90, va="center")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


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


def _wrapped(text: str, width: int = 22) -> str:
    return "\n".join(textwrap.wrap(text, width)[:3])
