"""Scores clips of the moving world: does each show what was requested, and does it hold together?

`detector` finds the objects of every frame; the columns are decided by the positions of one thing over time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adatsq_pipe.stages.scenes.world import detector, rendering
from adatsq_pipe.stages.scenes.world.detector import Array, Detection
from adatsq_pipe.stages.scenes.world.motions import DIRECTIONS, SPEEDS, TASKS, Motion

MAX_JERK = 1.5
"""Pixels by which a smooth clip's steps may differ from their mean."""
MIN_MOVEMENT = 3.0
"""Pixels from the first frame to the last that count as movement."""
MAX_NOISE = 0.05
"""Mean absolute difference from the background, where nothing is ever drawn, at which a frame is still clean."""
_COVERED = 0.1
"""Share of a pixel from which an object counts as drawn there."""


def detect(clips_NFHW3: Array) -> list[tuple[tuple[Detection, ...], ...]]:
    """The objects in each frame of each clip of `[N, F, H, W, 3]` with values in [0, 1].

    Raises ValueError for another shape.
    """
    if clips_NFHW3.ndim != 5:
        raise ValueError(f"clips have shape {clips_NFHW3.shape}; expected [count, frames, height, width, 3]")
    count, frames = clips_NFHW3.shape[:2]
    frames_of_all = detector.detect(clips_NFHW3.reshape(-1, *clips_NFHW3.shape[2:]))
    return [tuple(frames_of_all[i * frames : (i + 1) * frames]) for i in range(count)]


def verdicts(motion: Motion, detections: Sequence[Sequence[Detection]], clip_FHW3: Array) -> dict[str, bool]:
    """Every column of `motions.TASKS` for one clip and the objects in its frames.

    A frame without an object, or with two, fails all columns but the background.
    """
    clean = _background_is_clean(clip_FHW3)
    if any(len(frame) != 1 for frame in detections):
        return {task: task == "background" and clean for task in TASKS}
    things = [frame[0] for frame in detections]
    positions = np.array([(thing.x, thing.y) for thing in things])
    steps = np.diff(positions, axis=0)
    velocity = steps.mean(0)
    speed = float(np.hypot(*velocity))
    moved = bool(np.hypot(*(positions[-1] - positions[0])) >= MIN_MOVEMENT)
    along = float(velocity @ np.array(DIRECTIONS[motion.direction]))
    pace = min(SPEEDS, key=lambda name: abs(speed - SPEEDS[name]))
    return {
        "thing": all(thing.colour == motion.colour and thing.shape == motion.shape for thing in things),
        "direction": moved and along > 0.8 * speed,
        "speed": moved and pace == motion.speed,
        "subject": len({(thing.colour, thing.shape) for thing in things}) == 1 and things[0].shape != "",
        "smoothness": bool(np.hypot(*(steps - velocity).T).max() < MAX_JERK),
        "dynamics": moved,
        "background": clean,
    }


def _background_is_clean(clip_FHW3: Array) -> bool:
    """Whether the pixels that no object ever covers show the world's background, in every frame."""
    difference = np.abs(clip_FHW3.astype(np.float32) - np.array(rendering.BACKGROUND, np.float32)).max(-1)
    cover = detector.coverage(clip_FHW3).max(0)
    rest = np.median(cover) < _COVERED and cover < _COVERED
    return bool(np.any(rest)) and bool(difference[:, rest].mean(1).max() < MAX_NOISE)


def features(clips_NFHW3: Array) -> Array:
    """Fixed features `[N, 108]` for a Frechet distance: the first frame's, and the last frame's less those."""
    first, last = detector.features(clips_NFHW3[:, 0]), detector.features(clips_NFHW3[:, -1])
    joined: Array = np.concatenate([first, last - first], 1)
    return joined
