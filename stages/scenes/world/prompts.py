"""The built-in worlds by name: captioned "scenes", "classes" of things, "motions" in clips. Imports no torch.

`world` in a model's sampling.json names the world that it draws, which decides what its prompts mean.
"""

from __future__ import annotations

import numpy as np

from adatsq_pipe.stages.scenes.world import captions, motions
from adatsq_pipe.stages.scenes.world.captions import CLASSES, SPLITS, Request
from adatsq_pipe.stages.scenes.world.motions import Motion

WORLDS = ("scenes", "classes", "motions")


def parse_prompt(prompt: str, world: str) -> Request | Motion:
    """What a caption, or the class label of world "classes", asks for.

    Raises ValueError with a message of one line for an unknown world or a prompt that the world has no picture of.
    """
    if world == "scenes":
        return captions.parse(prompt)
    if world == "motions":
        return motions.parse(prompt)
    if world != "classes":
        raise ValueError(f"there is no world {world!r}; there are {', '.join(WORLDS)}")
    if not prompt.strip().isdigit():
        raise ValueError(f"{prompt!r} is not a class label; this model takes 0 to {len(CLASSES) - 1} (colour x shape)")
    return captions.class_request(int(prompt))


def draw_prompts(count: int, *, world: str, split: str, seed: int) -> tuple[str, ...]:
    """`count` captions, or class labels, for calibration ("train") or evaluation ("held_out"), seeded."""
    if world == "scenes":
        return tuple(request.caption for request in captions.requests(count, split=split, seed=seed))
    if world == "motions":
        return tuple(motion.caption for motion in motions.motions(count, split=split, seed=seed))
    order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(CLASSES))
    return tuple(str(order[i % len(order)]) for i in range(count))
