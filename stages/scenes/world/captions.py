"""What can be asked of the built-in world: captions like "a red circle left of a blue square".

A `Request` is what a caption asks for. The six tasks are GenEval's (Ghosh et al. 2310.11513): single object, two
objects, counting, colours, position, colour attribution. Combinations are split once and for all by a hash: a held-out
pair, count or coloured object never appears in training, in no wording; only the captions without a colour, four of a
single object ("a circle") and twelve of two, are in both splits, being too few. Imports no torch.
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
IN_BOTH_SPLITS = ("single", "two")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a caption asks for, before anything is placed. A thing is (colour, shape); colour "" leaves it open."""

    task: str
    things: tuple[tuple[str, str], ...]
    count: int = 1
    relation: str = ""

    @property
    def caption(self) -> str:
        names = [f"{colour} {shape}".strip() for colour, shape in self.things]
        if self.count > 1:
            colour, shape = self.things[0]
            return f"{COUNTS[self.count]} {colour} {PLURALS[shape]}"
        if len(names) == 1:
            return f"a {names[0]}"
        return f"a {names[0]} {self.relation or 'and'} a {names[1]}"

    @property
    def combination(self) -> str:
        """The key of the split: order and relation do not matter, so a held-out pair is unseen in every wording."""
        return f"{self.count}:" + "|".join(sorted(f"{colour} {shape}" for colour, shape in self.things))


def in_held_out(combination: str) -> bool:
    """Whether training never sees what has this key."""
    return hashlib.sha256(combination.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def held_out(request: Request) -> bool:
    """Whether `request` is of a combination that training never sees."""
    return in_held_out(request.combination)


def _every_request() -> tuple[Request, ...]:
    things = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    pairs = [pair for a, b in combinations(things, 2) for pair in ((a, b), (b, a))]
    shapes = [pair for a, b in combinations(SHAPES, 2) for pair in ((a, b), (b, a))]
    return (
        *(Request(task="single", things=(("", shape),)) for shape in SHAPES),
        *(Request(task="two", things=(("", a), ("", b))) for a, b in shapes),
        *(Request(task="counting", things=(thing,), count=n) for thing in things for n in COUNTS),
        *(Request(task="colours", things=(thing,)) for thing in things),
        *(Request(task="position", things=pair, relation=r) for pair in pairs for r in RELATIONS),
        *(Request(task="attribution", things=pair) for pair in pairs),
    )


EVERY_REQUEST = _every_request()
TASKS = ("single", "two", "counting", "colours", "position", "attribution")
_DRAWN = (0.03, 0.24, 0.19, 0.04, 0.14, 0.36)
"""How often training draws each task: most of all pairs whose places are open, which are the hardest to learn."""
SPLITS = ("train", "held_out")
_POOLS = {
    (split, task): tuple(
        r for r in EVERY_REQUEST if r.task == task and (task in IN_BOTH_SPLITS or held_out(r) is (split == "held_out"))
    )
    for split in SPLITS
    for task in TASKS
}


def requests(count: int, *, split: str, seed: int) -> tuple[Request, ...]:
    """`count` requests of `split` ("train" or "held_out"), the six tasks in turn, seeded.

    Each task's order is its own shuffle, so a longer list begins with the shorter one.
    """
    if split not in SPLITS:
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


CLASSES = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
"""What the class-conditional model's labels 0, 1, ... mean."""


def of_class(label: int) -> Request:
    """What a class label asks for. ValueError for a label that is none."""
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"there is no class {label}; the built-in world has 0 to {len(CLASSES) - 1} (colour x shape)")
    return Request(task="colours", things=(CLASSES[label],))


_BY_CAPTION = {request.caption: request for request in EVERY_REQUEST}


def parse(caption: str) -> Request:
    """What `caption` asks for. Raises ValueError, in one line, for a caption outside the grammar."""
    text = " ".join(caption.lower().replace(".", " ").split())
    if request := _BY_CAPTION.get(text):
        return request
    unknown = [word for word in text.split() if word not in WORDS]
    reason = f"it has no word {unknown[0]!r}" if unknown else "its words do not come in that order"
    raise ValueError(
        f"the built-in world has no picture of {caption!r}: {reason}; ask for something like 'a circle', "
        "'three green crosses' or 'a red circle left of a blue square' "
        f"(colours {', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; {', '.join(RELATIONS)}, and)"
    )


def draw_request(rng: np.random.Generator, *, split: str) -> Request:
    """One random request of `split`."""
    task = TASKS[np.searchsorted(np.cumsum(_DRAWN[:-1]), rng.random())]
    pool = _POOLS[split, task]
    return pool[rng.integers(len(pool))]
