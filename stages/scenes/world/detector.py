"""Reads pictures of the built-in world back and says whether they show what was asked for.

`read` finds objects with colour, shape and place; `right` judges them by GenEval's rules (Ghosh et al. 2310.11513, and
its published evaluation code's margins for positions). No model is involved: colours by their rays from the background,
objects as connected components of one colour, shapes by comparison with the world's own templates.
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

SMALLEST = 9.0
"""Pixels covered; less is a speckle, not an object."""
FIT = 0.7
"""Least overlap (soft intersection over union) with a template for a shape to be called by its name."""
LARGEST = 10.0
"""Radius in pixels above which a patch of colour is a wall, not a thing; the world's things have at most 6.5."""
_NAMES = tuple(COLOURS)
_BACKGROUND = np.array(rendering.BACKGROUND, np.float32)
_RAYS = np.array([COLOURS[c] for c in _NAMES], np.float32) - _BACKGROUND
_AREA = {"circle": np.pi, "square": 4 * 0.86**2, "triangle": 0.5 * 1.6 * 2 * 0.8 / 0.866, "cross": 2.3616}
_RISE = {"triangle": 0.2 / 3}
"""How far, in radii, a shape's centre of mass lies below the centre it is drawn by."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One object in a picture; `shape` is "" when it looks like none of them. Pixels, y down."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    fit: float


def read(pictures_NHW3: Array) -> list[tuple[Found, ...]]:
    """The objects in each picture, values in [0, 1]; largest first."""
    if pictures_NHW3.ndim != 4 or pictures_NHW3.shape[-1] != 3:
        raise ValueError(f"pictures have shape {pictures_NHW3.shape}; expected [count, height, width, 3]")
    cover, colour = _covered(pictures_NHW3.astype(np.float32))
    found: list[list[Found]] = [[] for _ in pictures_NHW3]
    pieces, rows, colours = [], [], []
    for c in range(len(_NAMES)):
        mine = colour == c
        flat = np.zeros((3, 3, 3), bool)
        flat[1] = ndimage.generate_binary_structure(2, 1)
        labels, _ = ndimage.label(mine & (cover > 0.5), flat)
        for label, box in enumerate(ndimage.find_objects(labels), 1):
            row, place = box[0].start, _around(box[1:], labels.shape[1:])
            whole = labels[row][place] == label
            near = ndimage.binary_dilation(whole) & (labels[row][place] == 0) & (colour[row][place] == c)
            soft = np.where(whole | near, cover[row][place], 0.0)
            if soft.sum() >= SMALLEST:
                pieces.append((soft, place[0].start, place[1].start))
                rows.append(row)
                colours.append(c)
    for row, c, (shape, x, y, radius, fit) in zip(rows, colours, _shapes(pieces), strict=True):
        found[row].append(Found(colour=_NAMES[c], shape=shape, x=x, y=y, radius=radius, fit=fit))
    return [tuple(sorted(each, key=lambda thing: -thing.radius)) for each in found]


def _covered(pictures: Array) -> tuple[Array, npt.NDArray[np.intp]]:
    """Per pixel: the share an object covers, and the nearest colour, as mixtures of that colour and the background."""
    above = pictures - _BACKGROUND
    share = np.clip(above @ _RAYS.T / np.square(_RAYS).sum(1), 0.0, 1.0)
    rest = (
        np.square(above).sum(-1, keepdims=True)
        - 2 * share * (above @ _RAYS.T)
        + np.square(share) * np.square(_RAYS).sum(1)
    )
    nearest = rest.argmin(-1)
    return np.take_along_axis(share, nearest[..., None], -1)[..., 0], nearest


def covered(pictures_NHW3: Array) -> Array:
    """Per pixel `[N, H, W]`, the share of it that an object covers."""
    return _covered(pictures_NHW3.astype(np.float32))[0]


def _around(box: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, slice]:
    rows, columns = (slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, shape, strict=True))
    return rows, columns


def _shapes(pieces: list[tuple[Array, int, int]]) -> list[tuple[str, float, float, float, float]]:
    """Name, centre, radius and overlap of each piece's best template; all pieces at once."""
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
    centres, fits, radii = [], [], []
    for shape in SHAPES:
        radius = (torch.from_numpy(area) / _AREA[shape]).sqrt()
        centre = y - _RISE.get(shape, 0.0) * radius
        away = (grid.view(1, 1, -1) - x.view(-1, 1, 1), grid.view(1, -1, 1) - centre.view(-1, 1, 1))
        template = (0.5 - rendering.distance(shape, *away, radius.view(-1, 1, 1))).clamp(0, 1)
        fits.append(torch.minimum(window, template).sum((1, 2)) / torch.maximum(window, template).sum((1, 2)))
        centres.append(centre)
        radii.append(radius)
    best = torch.stack(fits).argmax(0)
    named = []
    for i, s in enumerate(best.tolist()):
        fit, radius = fits[s][i].item(), radii[s][i].item()
        at = (x[i].item() + float(offsets[i, 1]), centres[s][i].item() + float(offsets[i, 0]))
        named.append((SHAPES[s] if fit >= FIT and radius <= LARGEST else "", *at, radius, fit))
    return named


def features(pictures_NHW3: Array) -> Array:
    """Fixed features `[N, 54]` for a Frechet distance: means of a 4 x 4 grid of cells, and each colour's coverage."""
    pictures = pictures_NHW3.astype(np.float32)
    count, height, width, _ = pictures.shape
    cells = pictures.reshape(count, 4, height // 4, 4, width // 4, 3).mean((2, 4)).reshape(count, -1)
    cover, colour = _covered(pictures)
    shares = np.stack([np.where(colour == c, cover, 0.0).mean((1, 2)) for c in range(len(_NAMES))], 1)
    joined: Array = np.concatenate([cells, shares], 1).astype(np.float32)
    return joined
