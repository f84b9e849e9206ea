"""The built-in world in pictures: requests are placed by a seed and rendered, anti-aliased, procedurally.

Nothing here knows a model. Pictures are float32 `[batch, 3, SIZE, SIZE]` in [-1, 1].
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
"""Pixels, by how many things there are; a thing's own radius is within SPREAD of it."""
SPREAD = (0.92, 1.08)
EDGE, GAP = 0.8, 1.6
"""Pixels that things keep from the picture's edge, and from each other."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object: its kind, and where its centre lies (pixels, y down) with its radius."""

    colour: str
    shape: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 5.0


def place(request: Request, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Positions for what `request` asks: apart from each other, inside the picture, the relation clear.

    A colour that was left open is drawn.
    """
    every = tuple(COLOURS)
    kinds = [(colour or every[rng.integers(len(every))], shape) for colour, shape in request.things * request.count]
    while True:
        radii = RADII[len(kinds)] * rng.uniform(*SPREAD, len(kinds))
        xs, ys = (rng.uniform(radii + EDGE, SIZE - radii - EDGE) for _ in range(2))
        things = tuple(
            Thing(colour=c, shape=s, x=float(x), y=float(y), radius=float(r))
            for (c, s), x, y, r in zip(kinds, xs, ys, radii, strict=True)
        )
        if obeyed(request, things):
            return things


def apart(things: Iterable[Thing]) -> bool:
    """Whether all of `things` keep GAP from each other."""
    return all(np.hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius >= GAP for a, b in combinations(things, 2))


def obeyed(request: Request, things: Sequence[Thing]) -> bool:
    """Whether `things`, of the kinds that `request` asks for, keep apart and stand in its relation."""
    if not apart(things):
        return False
    if not request.relation:
        return True
    first, second = things
    return holds(request.relation, first.x - second.x, first.y - second.y)


def holds(relation: str, dx: float, dy: float) -> bool:
    """Whether the first thing, at offset (dx, dy) from the second, stands in `relation` to it (main axis decides)."""
    across = abs(dx) > abs(dy)
    return {
        "left of": across and dx < 0,
        "right of": across and dx > 0,
        "above": not across and dy < 0,
        "below": not across and dy > 0,
    }[relation]


def distance(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Signed distance in pixels (negative inside), up to corners, for shapes of equal visual weight."""
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
            inside = (0.5 - distance(shape, centres.view(1, 1, -1) - x, centres.view(1, -1, 1) - y, r)).clamp(0, 1)
            colour = torch.tensor([COLOURS[t.colour] for t in things]).view(-1, 3, 1, 1)
            mask = inside.unsqueeze(1)
            picture[rows] = picture[rows] * (1 - mask) + colour * mask
    return picture * 2 - 1


def batch(seed: Sequence[int], size: int, *, split: str = "train") -> tuple[list[str], Tensor]:
    """`size` captions and their pictures; the same `seed` gives the same batch."""
    rng = np.random.default_rng(list(seed))
    wanted = [draw_request(rng, split=split) for _ in range(size)]
    return [r.caption for r in wanted], render([place(r, rng) for r in wanted])


def place_motion(motion: Motion, rng: np.random.Generator) -> tuple[Thing, ...]:
    """The one thing of a clip, in each frame; it stays inside the picture."""
    radius = 5.0 * rng.uniform(0.92, 1.08)
    step = np.array(DIRECTIONS[motion.direction]) * SPEEDS[motion.speed]
    path = step * (FRAMES - 1)
    low = radius + 0.8 + np.maximum(-path, 0)
    high = SIZE - radius - 0.8 - np.maximum(path, 0)
    start = rng.uniform(low, high)
    return tuple(
        Thing(colour=motion.colour, shape=motion.shape, x=float(x), y=float(y), radius=float(radius))
        for x, y in (start + step * i for i in range(FRAMES))
    )


def render_clips(clips: Sequence[Sequence[Thing]]) -> Tensor:
    """Clips of one thing per frame, float32 `[len(clips), FRAMES, 3, SIZE, SIZE]` in [-1, 1]."""
    frames = render([[thing] for clip in clips for thing in clip])
    return frames.view(len(clips), FRAMES, *frames.shape[1:])
