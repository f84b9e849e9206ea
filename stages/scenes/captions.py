"""What can be asked of the built-in world: captions like "a red circle left of a blue square".

A `Request` is what a caption asks for. Combinations are split once and for all by a hash: a held-out pair, count or
object never appears in training, in no wording. Imports no torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import combinations

import numpy as np

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
