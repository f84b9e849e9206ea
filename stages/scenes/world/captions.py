"""Captions of the built-in world, such as "a red circle left of a blue square". Imports no torch.

A `Request` is what a caption asks for. The six tasks are GenEval's (Ghosh et al. 2310.11513): single object, two
objects, counting, colours, position, colour attribution. A hash of the combination assigns it to a split: a held-out
pair, count or coloured object appears in no training caption, in no wording. Only the captions without a colour, four
of a single object ("a circle") and twelve of two, are in both splits, because there are too few of them.
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
    *("a", "and", "of", "left", "right", "above", "below"),
    *(*COUNTS.values(), *COLOURS, *SHAPES, *PLURALS.values()),
)
HELD_OUT_ONE_IN = 8
TASKS_IN_BOTH_SPLITS = ("single", "two")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a caption asks for. A thing is (colour, shape); colour "" leaves the colour open."""

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
        """The key of the split. It ignores order and relation, so a held-out pair is unseen in every wording."""
        return f"{self.count}:" + "|".join(sorted(f"{colour} {shape}" for colour, shape in self.things))


def is_held_out_combination(combination: str) -> bool:
    """Whether captions with this key are held out from training."""
    return hashlib.sha256(combination.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def is_held_out(request: Request) -> bool:
    """Whether the combination of `request` is held out from training."""
    return is_held_out_combination(request.combination)


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


ALL_REQUESTS = _every_request()
TASKS = ("single", "two", "counting", "colours", "position", "attribution")
_TASK_PROBABILITIES = (0.03, 0.24, 0.19, 0.04, 0.14, 0.36)
"""How often training draws each task. Pairs without a relation are the hardest to learn and come most often."""
SPLITS = ("train", "held_out")
_POOLS = {
    (split, task): tuple(
        r
        for r in ALL_REQUESTS
        if r.task == task and (task in TASKS_IN_BOTH_SPLITS or is_held_out(r) is (split == "held_out"))
    )
    for split in SPLITS
    for task in TASKS
}


def requests(count: int, *, split: str, seed: int) -> tuple[Request, ...]:
    """`count` requests of `split` ("train" or "held_out"), the six tasks in turn.

    Each task has its own seeded shuffle, so a longer list begins with the shorter one. Raises ValueError for another
    split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected 'train' or 'held_out'")
    orders = {
        task: np.random.default_rng([seed, i]).permutation(len(_POOLS[split, task])) for i, task in enumerate(TASKS)
    }
    selection = []
    for i in range(count):
        task = TASKS[i % len(TASKS)]
        pool, order = _POOLS[split, task], orders[task]
        selection.append(pool[order[(i // len(TASKS)) % len(pool)]])
    return tuple(selection)


CLASSES = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
"""The meaning of the class labels 0, 1, ..."""


def class_request(label: int) -> Request:
    """What a class label asks for. Raises ValueError for a label out of range."""
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"there is no class {label}; the built-in world has 0 to {len(CLASSES) - 1} (colour x shape)")
    return Request(task="colours", things=(CLASSES[label],))


_BY_CAPTION = {request.caption: request for request in ALL_REQUESTS}


def parse(caption: str) -> Request:
    """What `caption` asks for; case, spaces and full stops do not matter.

    Raises ValueError, with a message of one line, for a caption outside the grammar.
    """
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
    task = TASKS[np.searchsorted(np.cumsum(_TASK_PROBABILITIES[:-1]), rng.random())]
    pool = _POOLS[split, task]
    return pool[rng.integers(len(pool))]
