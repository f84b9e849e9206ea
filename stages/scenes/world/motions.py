"""Captions of the moving world, such as "a red circle moving left slowly". Imports no torch.

One thing moves through a few frames at one of two speeds. A hash assigns each combination of colour, shape, direction
and speed to a split, as in `captions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from adatsq_pipe.stages.scenes.world.captions import COLOURS, SHAPES, is_held_out_combination

FRAMES = 5
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": 1.25, "fast": 3.5}
"""Pixels per frame."""
WORDS = ("a", "moving", *DIRECTIONS, *SPEEDS, *COLOURS, *SHAPES)
TASKS = ("thing", "direction", "speed", "subject", "smoothness", "dynamics", "background")
"""The columns of a clip's score. The first three depend on its caption; the others are those of VBench (Huang et al.
2311.17982) that a program can decide here."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What a caption asks for."""

    colour: str
    shape: str
    direction: str
    speed: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} moving {self.direction} {self.speed}"


ALL_MOTIONS = tuple(
    Motion(colour=c, shape=s, direction=d, speed=v) for c, s, d, v in product(COLOURS, SHAPES, DIRECTIONS, SPEEDS)
)
_POOLS = {
    split: tuple(m for m in ALL_MOTIONS if is_held_out_combination(m.caption) is (split == "held_out"))
    for split in ("train", "held_out")
}
_BY_CAPTION = {motion.caption: motion for motion in ALL_MOTIONS}


def motions(count: int, *, split: str, seed: int) -> tuple[Motion, ...]:
    """`count` motions of `split` ("train" or "held_out"); a longer list begins with the shorter one."""
    pool = _POOLS[split]
    order = np.random.default_rng([seed, 17]).permutation(len(pool))
    return tuple(pool[order[i % len(pool)]] for i in range(count))


def draw_motion(rng: np.random.Generator, *, split: str) -> Motion:
    """One random motion of `split`."""
    pool = _POOLS[split]
    return pool[rng.integers(len(pool))]


def parse(caption: str) -> Motion:
    """What `caption` asks for; case, spaces and full stops do not matter.

    Raises ValueError, with a message of one line, for a caption outside the grammar.
    """
    if motion := _BY_CAPTION.get(" ".join(caption.lower().replace(".", " ").split())):
        return motion
    raise ValueError(
        f"the moving world has no clip of {caption!r}; ask for something like 'a red circle moving left slowly' "
        f"(colours {', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; {', '.join(DIRECTIONS)}; {', '.join(SPEEDS)})"
    )
