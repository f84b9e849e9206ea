"""The built-in world: captions like "a red circle left of a blue square", and the pictures they ask for.

A `Scene` says what is where; `caption(scene)` is its text, `render` its picture, `draw_scene` a seeded random one.
Combinations are split once and for all by a hash: a held-out pair, count or object never appears in training.
Nothing here knows a model. Pictures are float32 `[batch, 3, SIZE, SIZE]` in [-1, 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

SIZE = 32
BACKGROUND = (0.09, 0.09, 0.11)
COLOURS = {
    "red": (0.90, 0.16, 0.16),
    "green": (0.16, 0.75, 0.24),
    "blue": (0.18, 0.33, 0.95),
    "yellow": (0.96, 0.86, 0.18),
    "purple": (0.66, 0.22, 0.86),
    "white": (0.94, 0.94, 0.94),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
COUNTS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
WORDS = (
    "a", "and", "of", "left", "right", "above", "below",
    *COUNTS.values(), *COLOURS, *SHAPES, *PLURALS.values(),
)  # fmt: skip
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object: its kind, and where its centre lies (pixels, y down) with its radius."""

    colour: str
    shape: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 5.0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a caption asks for, before anything is placed. `task` is one of single, two, counting, position."""

    task: str
    things: tuple[tuple[str, str], ...]
    count: int = 1
    relation: str = ""

    @property
    def caption(self) -> str:
        names = [f"{colour} {shape}" for colour, shape in self.things]
        if self.task == "single":
            return f"a {names[0]}"
        if self.task == "counting":
            colour, shape = self.things[0]
            return f"{COUNTS[self.count]} {colour} {PLURALS[shape]}"
        return f"a {names[0]} {self.relation or 'and'} a {names[1]}"

    @property
    def combination(self) -> str:
        """The key of the split: order and relation do not matter, so a held-out pair is unseen in every wording."""
        return f"{self.count}:" + "|".join(sorted(f"{colour} {shape}" for colour, shape in self.things))


def held_out(request: Request) -> bool:
    digest = hashlib.sha256(request.combination.encode()).digest()
    return digest[0] % HELD_OUT_ONE_IN == 0


def _every_request() -> tuple[Request, ...]:
    things = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    singles = [Request(task="single", things=(thing,)) for thing in things]
    counting = [Request(task="counting", things=(thing,), count=n) for thing in things for n in COUNTS]
    pairs = [pair for a, b in combinations(things, 2) for pair in ((a, b), (b, a))]
    two = [Request(task="two", things=pair) for pair in pairs]
    position = [Request(task="position", things=pair, relation=r) for pair in pairs for r in RELATIONS]
    return (*singles, *counting, *two, *position)


EVERY_REQUEST = _every_request()
TASKS = ("single", "two", "counting", "position")
_POOLS = {
    (split, task): tuple(r for r in EVERY_REQUEST if r.task == task and held_out(r) is (split == "held_out"))
    for split in ("train", "held_out")
    for task in TASKS
}


def requests(count: int, *, split: str, seed: int) -> tuple[Request, ...]:
    """`count` requests of `split` ("train" or "held_out"), the four tasks in turn, seeded.

    Each task's order is its own shuffle, so a longer list begins with the shorter one.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'held_out'")
    orders = {
        task: np.random.default_rng([seed, i]).permutation(len(_POOLS[split, task])) for i, task in enumerate(TASKS)
    }
    chosen = []
    for i in range(count):
        task = TASKS[i % len(TASKS)]
        pool, order = _POOLS[split, task], orders[task]
        chosen.append(pool[order[(i // len(TASKS)) % len(pool)]])
    return tuple(chosen)


def draw_request(rng: np.random.Generator, *, split: str) -> Request:
    """One random request; relations are drawn most often because they are the hardest to learn."""
    task = TASKS[rng.choice(4, p=(0.15, 0.2, 0.25, 0.4))]
    pool = _POOLS[split, task]
    return pool[rng.integers(len(pool))]


def place(request: Request, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Positions for what `request` asks: apart from each other, inside the picture, the relation clear."""
    kinds = request.things * request.count if request.task == "counting" else request.things
    base = 6.0 if len(kinds) == 1 else 5.2 if len(kinds) == 2 else 4.4
    while True:
        radii = base * rng.uniform(0.92, 1.08, len(kinds))
        xs, ys = (rng.uniform(radii + 0.8, SIZE - radii - 0.8) for _ in range(2))
        gaps = [
            np.hypot(xs[i] - xs[j], ys[i] - ys[j]) - radii[i] - radii[j]
            for i, j in combinations(range(len(kinds)), 2)
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


def _distance(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
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
            inside = (0.5 - _distance(shape, centres.view(1, 1, -1) - x, centres.view(1, -1, 1) - y, r)).clamp(0, 1)
            colour = torch.tensor([COLOURS[t.colour] for t in things]).view(-1, 3, 1, 1)
            mask = inside.unsqueeze(1)
            picture[rows] = picture[rows] * (1 - mask) + colour * mask
    return picture * 2 - 1


def batch(seed: Sequence[int], size: int, *, split: str = "train") -> tuple[list[str], Tensor]:
    """`size` captions and their pictures; the same `seed` gives the same batch."""
    rng = np.random.default_rng(list(seed))
    wanted = [draw_request(rng, split=split) for _ in range(size)]
    return [r.caption for r in wanted], render([place(r, rng) for r in wanted])
