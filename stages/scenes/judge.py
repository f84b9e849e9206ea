"""Judges pictures and clips alike: what was asked for of each decides how it is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adatsq_pipe.stages.scenes import clips, scorer, world
from adatsq_pipe.stages.scenes.captions import Request
from adatsq_pipe.stages.scenes.motions import Motion
from adatsq_pipe.stages.scenes.scorer import Array


def verdicts(wanted: Sequence[Request | Motion], drawn: Array) -> list[dict[str, bool]]:
    """Task by task, whether each of `drawn` (pictures `[N, H, W, 3]`, or clips `[N, F, H, W, 3]`) is right."""
    if drawn.ndim == 5:
        moved = [motion for motion in wanted if isinstance(motion, Motion)]
        read = zip(moved, clips.read(drawn), drawn, strict=True)
        return [clips.verdicts(motion, found, clip) for motion, found, clip in read]
    asked = [request for request in wanted if isinstance(request, Request)]
    pairs = zip(asked, scorer.read(drawn), strict=True)
    return [{request.task: scorer.right(request, found)} for request, found in pairs]


def overlap(drawn: Array) -> Array:
    """How cleanly each of `drawn` shows things, `[N]`: the mean overlap (soft intersection over union, 0 to 1) of what
    is found in it with the world's nearest shape, whatever was asked for; 0 where nothing is found. Clips: over frames.
    """
    pictures = drawn.reshape(-1, *drawn.shape[-3:])
    means = [np.mean([thing.fit for thing in found]) if found else 0.0 for found in scorer.read(pictures)]
    each: Array = np.array(means, np.float32).reshape(len(drawn), -1).mean(1)
    return each


def features(drawn: Array) -> Array:
    """Fixed features of pictures or clips, for a Frechet distance."""
    return clips.features(drawn) if drawn.ndim == 5 else scorer.features(drawn)


def truth(wanted: Sequence[Request | Motion], rng: np.random.Generator) -> Array:
    """Rendered pictures, or clips, that are what is asked for; values in [0, 1], channels last."""
    moved = [motion for motion in wanted if isinstance(motion, Motion)]
    if moved:
        drawn = world.render_clips([world.place_motion(motion, rng) for motion in moved])
    else:
        drawn = world.render([world.place(request, rng) for request in wanted if isinstance(request, Request)])
    shown: Array = ((drawn + 1) / 2).movedim(-3, -1).numpy()
    return shown
