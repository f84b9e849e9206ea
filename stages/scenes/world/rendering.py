"""Renders the built-in worlds: a seed places what is requested, and shapes are drawn anti-aliased.

Pictures are float32 `[batch, 3, SIZE, SIZE]` in [-1, 1]. Positions and sizes are in pixels, y points down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from adatsq_pipe.stages.scenes.world.captions import COLOURS, SHAPES, Request, draw_request
from adatsq_pipe.stages.scenes.world.motions import DIRECTIONS, FRAMES, SPEEDS, Motion

SIZE = 32
BACKGROUND = (0.09, 0.09, 0.11)
RADII = {1: 6.0, 2: 5.2, 3: 4.4, 4: 4.4}
"""Mean radius by the number of things; a thing's own radius is SPREAD times it."""
SPREAD = (0.92, 1.08)
EDGE, GAP = 0.8, 1.6
"""Least distance of things from the picture's edge, and from each other."""
_MOTION_RADIUS = 5.0


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object: its kind, its centre and its radius."""

    colour: str
    shape: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 5.0


def place(request: Request, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Random places for what `request` asks for, as `satisfies` demands. An open colour is drawn at random."""
    names = tuple(COLOURS)
    kinds = [(colour or names[rng.integers(len(names))], shape) for colour, shape in request.things * request.count]
    while True:
        radii = RADII[len(kinds)] * rng.uniform(*SPREAD, len(kinds))
        least, most = radii + EDGE, SIZE - radii - EDGE
        # what rng.uniform draws, without its checks of arrays, which take longer
        xs, ys = (least + (most - least) * rng.random(len(kinds)) for _ in range(2))
        things = tuple(
            Thing(colour=c, shape=s, x=float(x), y=float(y), radius=float(r))
            for (c, s), x, y, r in zip(kinds, xs, ys, radii, strict=True)
        )
        if satisfies(request, things):
            return things


def are_apart(things: Iterable[Thing]) -> bool:
    """Whether all of `things` are at least GAP from each other."""
    return all(np.hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius >= GAP for a, b in combinations(things, 2))


def satisfies(request: Request, things: Sequence[Thing]) -> bool:
    """Whether `things`, of the kinds that `request` asks for, are apart and stand in its relation."""
    if not are_apart(things):
        return False
    if not request.relation:
        return True
    first, second = things
    return relation_holds(request.relation, first.x - second.x, first.y - second.y)


def relation_holds(relation: str, dx: float, dy: float) -> bool:
    """Whether a thing at offset (dx, dy) from another stands in `relation` to it; the larger axis decides."""
    across = abs(dx) > abs(dy)
    return {
        "left of": across and dx < 0,
        "right of": across and dx > 0,
        "above": not across and dy < 0,
        "below": not across and dy > 0,
    }[relation]


def signed_distance(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Signed distance in pixels to a shape of size `r` at the origin, negative inside; corners are not rounded.

    The shapes are scaled to look equally large.
    """
    if shape == "circle":
        return torch.hypot(x, y) - r
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.86 * r
    if shape == "triangle":
        slope = (0.866 * x.abs() - 0.5 * y) - 0.5 * r
        return torch.maximum(slope, y - 0.6 * r)
    arm, width = r, 0.36 * r
    bar_h = torch.maximum(x.abs() - arm, y.abs() - width)
    bar_v = torch.maximum(y.abs() - arm, x.abs() - width)
    return torch.minimum(bar_h, bar_v)


def render(scenes: Sequence[Sequence[Thing]]) -> Tensor:
    """Anti-aliased pictures of placed things, float32 `[len(scenes), 3, SIZE, SIZE]` in [-1, 1]."""
    picture = torch.tensor(BACKGROUND).view(1, 3, 1, 1).repeat(len(scenes), 1, SIZE, SIZE)
    centres = torch.arange(SIZE) + 0.5
    for slot in range(max((len(scene) for scene in scenes), default=0)):
        for shape in SHAPES:
            rows = [i for i, scene in enumerate(scenes) if len(scene) > slot and scene[slot].shape == shape]
            if not rows:
                continue
            things = [scenes[i][slot] for i in rows]
            x, y, r = (torch.tensor([getattr(t, k) for t in things]).view(-1, 1, 1) for k in ("x", "y", "radius"))
            inside = (0.5 - signed_distance(shape, centres.view(1, 1, -1) - x, centres.view(1, -1, 1) - y, r)).clamp(
                0, 1
            )
            colour = torch.tensor([COLOURS[t.colour] for t in things]).view(-1, 3, 1, 1)
            mask = inside.unsqueeze(1)
            picture[rows] = picture[rows] * (1 - mask) + colour * mask
    return picture * 2 - 1


def batch(seed: Sequence[int], size: int, *, split: str = "train") -> tuple[list[str], Tensor]:
    """`size` captions of `split` and their pictures; `seed` decides both."""
    rng = np.random.default_rng(list(seed))
    requests = [draw_request(rng, split=split) for _ in range(size)]
    return [request.caption for request in requests], render([place(request, rng) for request in requests])


def place_motion(motion: Motion, rng: np.random.Generator) -> tuple[Thing, ...]:
    """The thing of a clip in each of its FRAMES frames, inside the picture throughout."""
    radius = _MOTION_RADIUS * rng.uniform(*SPREAD)
    step = np.array(DIRECTIONS[motion.direction]) * SPEEDS[motion.speed]
    path = step * (FRAMES - 1)
    low = radius + EDGE + np.maximum(-path, 0)
    high = SIZE - radius - EDGE - np.maximum(path, 0)
    start = rng.uniform(low, high)
    return tuple(
        Thing(colour=motion.colour, shape=motion.shape, x=float(x), y=float(y), radius=float(radius))
        for x, y in (start + step * i for i in range(FRAMES))
    )


def render_clips(clips: Sequence[Sequence[Thing]]) -> Tensor:
    """Clips of one thing per frame, float32 `[len(clips), FRAMES, 3, SIZE, SIZE]` in [-1, 1]."""
    frames = render([[thing] for clip in clips for thing in clip])
    return frames.view(len(clips), FRAMES, *frames.shape[1:])
