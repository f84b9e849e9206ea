"""Scores pictures and clips: does each show what was requested?

Pictures follow the rules of GenEval (Ghosh et al. 2310.11513); the margins for positions are those of its published
evaluation code. `detector` finds the objects; `clips` scores motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from adatsq_pipe.stages.scenes.world import clips, detector, rendering
from adatsq_pipe.stages.scenes.world.captions import Request
from adatsq_pipe.stages.scenes.world.detector import Array, Detection
from adatsq_pipe.stages.scenes.world.motions import Motion

MARGIN = 0.1
"""Share of both objects' sizes that an offset must exceed to count."""
MIN_COSINE = 0.5
"""Least cosine between an offset and a relation's direction: 60 degrees."""


def verdicts(requests: Sequence[Request | Motion], images: Array) -> list[dict[str, bool]]:
    """For each image, task by task, whether it shows what was requested.

    `images` are pictures `[N, H, W, 3]` or clips `[N, F, H, W, 3]`, values in [0, 1]. Raises ValueError if `requests`
    has another length, or asks for clips where pictures are passed (or the reverse).
    """
    if images.ndim == 5:
        motions = [request for request in requests if isinstance(request, Motion)]
        scored = zip(motions, clips.detect(images), images, strict=True)
        return [clips.verdicts(motion, frames, clip) for motion, frames, clip in scored]
    pictures = [request for request in requests if isinstance(request, Request)]
    pairs = zip(pictures, detector.detect(images), strict=True)
    return [{request.task: is_correct(request, detections)} for request, detections in pairs]


def is_correct(request: Request, detections: Sequence[Detection]) -> bool:
    """Whether the detected objects are what `request` asks for.

    Counting wants exactly the number; the other tasks want the things to be present, with their colours where the
    caption names colours, and in their relation.
    """
    matches = [
        [d for d in detections if d.shape == shape and (not colour or d.colour == colour)]
        for colour, shape in request.things
    ]
    if request.count > 1:
        return len(matches[0]) == request.count
    if len(matches) == 1:
        return bool(matches[0])
    return any(
        a is not b and (not request.relation or stands_in_relation(request.relation, a, b))
        for a, b in product(*matches)
    )


def stands_in_relation(relation: str, a: Detection, b: Detection) -> bool:
    """GenEval's rule for positions.

    The offset of the centres, less a margin of a tenth of both sizes along each axis, must lie within 60 degrees of the
    relation's direction.
    """
    margin = MARGIN * 2 * (a.radius + b.radius)
    dx, dy = ((abs(d) - margin) * np.sign(d) if abs(d) > margin else 0.0 for d in (a.x - b.x, a.y - b.y))
    length = float(np.hypot(dx, dy))
    if length == 0:
        return False
    cosine = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation] / length
    return bool(cosine > MIN_COSINE)


def mean_overlap(images: Array) -> Array:
    """How cleanly each image shows its objects, float32 `[N]` in [0, 1], whatever was requested.

    This is the mean overlap (soft intersection over union) of the detected objects with the nearest template, 0 where
    nothing is detected; for clips, the mean over frames.
    """
    pictures = images.reshape(-1, *images.shape[-3:])
    means = [np.mean([d.overlap for d in objects]) if objects else 0.0 for objects in detector.detect(pictures)]
    by_image: Array = np.array(means, np.float32).reshape(len(images), -1).mean(1)
    return by_image


def features(images: Array) -> Array:
    """Fixed features `[N, F]` of pictures or clips, for a Frechet distance."""
    return clips.features(images) if images.ndim == 5 else detector.features(images)


def ground_truth(requests: Sequence[Request | Motion], rng: np.random.Generator) -> Array:
    """Rendered pictures, or clips, of what is requested: float32, channels last, values in [0, 1]."""
    motions = [request for request in requests if isinstance(request, Motion)]
    if motions:
        images = rendering.render_clips([rendering.place_motion(motion, rng) for motion in motions])
    else:
        pictures = [request for request in requests if isinstance(request, Request)]
        images = rendering.render([rendering.place(request, rng) for request in pictures])
    channels_last: Array = ((images + 1) / 2).movedim(-3, -1).numpy()
    return channels_last
