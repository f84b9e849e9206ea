"""The built-in world in pictures: requests are placed by a seed and rendered, anti-aliased, procedurally.

Nothing here knows a model. Pictures are float32 `[batch, 3, SIZE, SIZE]` in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from adatsq_pipe.stages.scenes.captions import COLOURS, SHAPES, Request, draw_request
from adatsq_pipe.stages.scenes.motions import DIRECTIONS, FRAMES, SPEEDS, Motion

SIZE = 32
BACKGROUND = (0.09, 0.09, 0.11)


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
    base = 6.0 if len(kinds) == 1 else 5.2 if len(kinds) == 2 else 4.4
    while True:
        radii = base * rng.uniform(0.92, 1.08, len(kinds))
        xs, ys = (rng.uniform(radii + 0.8, SIZE - radii - 0.8) for _ in range(2))
        gaps = [
            np.hypot(xs[i] - xs[j], ys[i] - ys[j]) - radii[i] - radii[j] for i, j in combinations(range(len(kinds)), 2)
        ]
        if min(gaps, default=SIZE) < 1.6:
            continue
        if request.relation and not holds(request.relation, xs[0] - xs[1], ys[0] - ys[1]):
            continue
        return tuple(
            Thing(colour=c, shape=s, x=float(x), y=float(y), radius=float(r))
            for (c, s), x, y, r in zip(kinds, xs, ys, radii, strict=True)
        )


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
