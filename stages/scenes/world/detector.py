"""Finds the objects in pictures of the built-in world: colour, shape, place and size of each.

No model is involved. A pixel's colour is the nearest mixture of a world colour with the background, an object is a
connected component of one colour, and its shape is that of the template it overlaps most. `scorer` decides whether the
objects are what was requested.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from adatsq_pipe.stages.scenes.world import rendering
from adatsq_pipe.stages.scenes.world.captions import COLOURS, SHAPES

Array = npt.NDArray[np.float32]

MIN_AREA = 9.0
"""Least area of an object in pixels; a smaller patch is a speckle."""
MIN_OVERLAP = 0.7
"""Least overlap (soft intersection over union) with a template at which a shape is named."""
MAX_RADIUS = 10.0
"""Largest radius in pixels of a named shape; the world renders at most 6.5."""
_NAMES = tuple(COLOURS)
_BACKGROUND = np.array(rendering.BACKGROUND, np.float32)
_RAYS = np.array([COLOURS[c] for c in _NAMES], np.float32) - _BACKGROUND
_AREA = {"circle": np.pi, "square": 4 * 0.86**2, "triangle": 0.5 * 1.6 * 2 * 0.8 / 0.866, "cross": 2.3616}
_DROP = {"triangle": 0.2 / 3}
"""How far, in radii, a shape's centre of mass lies below the centre it is rendered at."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object in a picture. Lengths in pixels, y points down; `shape` is "" where no template overlaps."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    overlap: float
    """Soft intersection over union with the best template, 0 to 1."""


def detect(pictures_NHW3: Array) -> list[tuple[Detection, ...]]:
    """The objects in each picture of `[N, H, W, 3]` with values in [0, 1], largest first.

    Raises ValueError for another shape.
    """
    if pictures_NHW3.ndim != 4 or pictures_NHW3.shape[-1] != 3:
        raise ValueError(f"pictures have shape {pictures_NHW3.shape}; expected [count, height, width, 3]")
    cover, colour = _coverage_and_colour(pictures_NHW3.astype(np.float32))
    detections: list[list[Detection]] = [[] for _ in pictures_NHW3]
    pieces, rows, colours = [], [], []
    for c in range(len(_NAMES)):
        of_colour = colour == c
        flat = np.zeros((3, 3, 3), bool)
        flat[1] = ndimage.generate_binary_structure(2, 1)
        labels, _ = ndimage.label(of_colour & (cover > 0.5), flat)
        for label, box in enumerate(ndimage.find_objects(labels), 1):
            row, place = box[0].start, _around(box[1:], labels.shape[1:])
            whole = labels[row][place] == label
            near = ndimage.binary_dilation(whole) & (labels[row][place] == 0) & (colour[row][place] == c)
            soft = np.where(whole | near, cover[row][place], 0.0)
            if soft.sum() >= MIN_AREA:
                pieces.append((soft, place[0].start, place[1].start))
                rows.append(row)
                colours.append(c)
    for row, c, (shape, x, y, radius, overlap) in zip(rows, colours, _shapes(pieces), strict=True):
        detections[row].append(Detection(colour=_NAMES[c], shape=shape, x=x, y=y, radius=radius, overlap=overlap))
    return [tuple(sorted(each, key=lambda thing: -thing.radius)) for each in detections]


def _coverage_and_colour(pictures: Array) -> tuple[Array, npt.NDArray[np.intp]]:
    """Per pixel: the share that an object covers, and the index of its colour.

    A pixel is read as background + share * (colour - background), with the colour that leaves the least residual.
    """
    above = pictures - _BACKGROUND
    share = np.clip(above @ _RAYS.T / np.square(_RAYS).sum(1), 0.0, 1.0)
    rest = (
        np.square(above).sum(-1, keepdims=True)
        - 2 * share * (above @ _RAYS.T)
        + np.square(share) * np.square(_RAYS).sum(1)
    )
    nearest = rest.argmin(-1)
    return np.take_along_axis(share, nearest[..., None], -1)[..., 0], nearest


def coverage(pictures_NHW3: Array) -> Array:
    """The share of each pixel that an object covers, `[N, H, W]`."""
    return _coverage_and_colour(pictures_NHW3.astype(np.float32))[0]


def _around(box: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, slice]:
    rows, columns = (slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, shape, strict=True))
    return rows, columns


def _shapes(pieces: list[tuple[Array, int, int]]) -> list[tuple[str, float, float, float, float]]:
    """Name, centre (x, y), radius and overlap of the template that fits each piece best.

    A template has the piece's area and centre of mass. All pieces are compared at once.
    """
    if not pieces:
        return []
    side = max(max(soft.shape) for soft, _, _ in pieces) + 2
    window = torch.zeros(len(pieces), side, side)
    offsets, area = np.zeros((len(pieces), 2), np.float32), np.zeros(len(pieces), np.float32)
    for i, (soft, top, left) in enumerate(pieces):
        window[i, : soft.shape[0], : soft.shape[1]] = torch.from_numpy(soft)
        offsets[i], area[i] = (top, left), soft.sum()
    grid = torch.arange(side) + 0.5
    mass = window.sum((1, 2))
    y, x = ((window * along).sum((1, 2)) / mass for along in (grid.view(1, -1, 1), grid.view(1, 1, -1)))
    centres, overlaps, radii = [], [], []
    for shape in SHAPES:
        radius = (torch.from_numpy(area) / _AREA[shape]).sqrt()
        centre = y - _DROP.get(shape, 0.0) * radius
        away = (grid.view(1, 1, -1) - x.view(-1, 1, 1), grid.view(1, -1, 1) - centre.view(-1, 1, 1))
        template = (0.5 - rendering.signed_distance(shape, *away, radius.view(-1, 1, 1))).clamp(0, 1)
        overlaps.append(torch.minimum(window, template).sum((1, 2)) / torch.maximum(window, template).sum((1, 2)))
        centres.append(centre)
        radii.append(radius)
    best = torch.stack(overlaps).argmax(0)
    named = []
    for i, s in enumerate(best.tolist()):
        overlap, radius = overlaps[s][i].item(), radii[s][i].item()
        at = (x[i].item() + float(offsets[i, 1]), centres[s][i].item() + float(offsets[i, 0]))
        named.append((SHAPES[s] if overlap >= MIN_OVERLAP and radius <= MAX_RADIUS else "", *at, radius, overlap))
    return named


def features(pictures_NHW3: Array) -> Array:
    """Fixed features `[N, 54]` for a Frechet distance: means of a 4 x 4 grid of cells, and each colour's coverage."""
    pictures = pictures_NHW3.astype(np.float32)
    count, height, width, _ = pictures.shape
    cells = pictures.reshape(count, 4, height // 4, 4, width // 4, 3).mean((2, 4)).reshape(count, -1)
    cover, colour = _coverage_and_colour(pictures)
    shares = np.stack([np.where(colour == c, cover, 0.0).mean((1, 2)) for c in range(len(_NAMES))], 1)
    joined: Array = np.concatenate([cells, shares], 1).astype(np.float32)
    return joined
