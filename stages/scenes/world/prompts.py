"""The built-in worlds by name: captioned "scenes", "classes" of things, "motions" in clips.

What a model's folder (sampling.json) says it draws decides what its prompts mean. Imports no torch.
"""

from __future__ import annotations

import numpy as np

from adatsq_pipe.stages.scenes.world import captions, motions
from adatsq_pipe.stages.scenes.world.captions import CLASSES, SPLITS, Request
from adatsq_pipe.stages.scenes.world.motions import Motion

WORLDS = ("scenes", "classes", "motions")


def asked(prompt: str, world: str) -> Request | Motion:
    """What a caption, or the class label of world "classes", asks for. ValueError, in one line, for any other."""
    if world == "scenes":
        return captions.parse(prompt)
    if world == "motions":
        return motions.parse(prompt)
    if world != "classes":
        raise ValueError(f"there is no world {world!r}; there are {', '.join(WORLDS)}")
    if not prompt.strip().isdigit():
        raise ValueError(f"{prompt!r} is no class label; this model takes 0 to {len(CLASSES) - 1} (colour x shape)")
    return captions.of_class(int(prompt))


def prompts(count: int, *, world: str, split: str, seed: int) -> tuple[str, ...]:
    """`count` captions, or class labels, for calibration ("train") or evaluation ("held_out")."""
    if world == "scenes":
        return tuple(request.caption for request in captions.requests(count, split=split, seed=seed))
    if world == "motions":
        return tuple(motion.caption for motion in motions.motions(count, split=split, seed=seed))
    order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(CLASSES))
    return tuple(str(order[i % len(order)]) for i in range(count))
