"""Judges pictures and clips alike: what was asked for of each decides how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from adatsq_pipe.stages.scenes.world import clips, detector, rendering
from adatsq_pipe.stages.scenes.world.captions import Request
from adatsq_pipe.stages.scenes.world.detector import Array, Found
from adatsq_pipe.stages.scenes.world.motions import Motion

_MARGIN = 0.1
_LEAN = 0.5


def verdicts(wanted: Sequence[Request | Motion], drawn: Array) -> list[dict[str, bool]]:
    """Task by task, whether each of `drawn` (pictures `[N, H, W, 3]`, or clips `[N, F, H, W, 3]`) is right."""
    if drawn.ndim == 5:
        moved = [motion for motion in wanted if isinstance(motion, Motion)]
        read = zip(moved, clips.read(drawn), drawn, strict=True)
        return [clips.verdicts(motion, found, clip) for motion, found, clip in read]
    asked = [request for request in wanted if isinstance(request, Request)]
    pairs = zip(asked, detector.read(drawn), strict=True)
    return [{request.task: right(request, found)} for request, found in pairs]


def right(request: Request, found: Sequence[Found]) -> bool:
    """Whether `found` shows what `request` asks for.

    Counting wants exactly the number; the other tasks want the things to be there, with their colours where colours are
    asked for, and with their relation.
    """
    matches = [
        [f for f in found if f.shape == shape and (not colour or f.colour == colour)]
        for colour, shape in request.things
    ]
    if request.count > 1:
        return len(matches[0]) == request.count
    if len(matches) == 1:
        return bool(matches[0])
    return any(a is not b and (not request.relation or stands(request.relation, a, b)) for a, b in product(*matches))


def stands(relation: str, a: Found, b: Found) -> bool:
    """GenEval's rule: the offset of centres, less a margin of a tenth of both sizes, leans within 60 degrees."""
    margin = _MARGIN * 2 * (a.radius + b.radius)
    dx, dy = ((abs(d) - margin) * np.sign(d) if abs(d) > margin else 0.0 for d in (a.x - b.x, a.y - b.y))
    length = float(np.hypot(dx, dy))
    if length == 0:
        return False
    lean = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation] / length
    return bool(lean > _LEAN)


def overlap(drawn: Array) -> Array:
    """How cleanly each of `drawn` shows things, `[N]`: the mean overlap (soft intersection over union, 0 to 1) of what
    is found in it with the world's nearest shape, whatever was asked for; 0 where nothing is found. Clips: over frames.
    """
    pictures = drawn.reshape(-1, *drawn.shape[-3:])
    means = [np.mean([thing.fit for thing in found]) if found else 0.0 for found in detector.read(pictures)]
    each: Array = np.array(means, np.float32).reshape(len(drawn), -1).mean(1)
    return each


def features(drawn: Array) -> Array:
    """Fixed features of pictures or clips, for a Frechet distance."""
    return clips.features(drawn) if drawn.ndim == 5 else detector.features(drawn)


def truth(wanted: Sequence[Request | Motion], rng: np.random.Generator) -> Array:
    """Rendered pictures, or clips, that are what is asked for; values in [0, 1], channels last."""
    moved = [motion for motion in wanted if isinstance(motion, Motion)]
    if moved:
        drawn = rendering.render_clips([rendering.place_motion(motion, rng) for motion in moved])
    else:
        drawn = rendering.render([rendering.place(request, rng) for request in wanted if isinstance(request, Request)])
    shown: Array = ((drawn + 1) / 2).movedim(-3, -1).numpy()
    return shown
