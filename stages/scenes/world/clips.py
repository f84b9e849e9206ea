"""Reads clips of the moving world back and says whether they show what was asked for, and whether they hold together.

Each frame is read as a picture is (`detector.read`); what is judged from there are the places of one thing over time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adatsq_pipe.stages.scenes.world import detector, rendering
from adatsq_pipe.stages.scenes.world.detector import Array, Found
from adatsq_pipe.stages.scenes.world.motions import DIRECTIONS, SPEEDS, Motion

JERK = 1.5
"""Pixels by which a frame's step may differ from the clip's mean step and still be smooth."""
MOVED = 3.0
"""Pixels from the first frame to the last that count as movement."""
QUIET = 0.05
"""Mean absolute difference to the world's background, of pixels that no thing ever covers, that counts as none."""
_COVERED = 0.1


def read(clips_NFHW3: Array) -> list[tuple[tuple[Found, ...], ...]]:
    """For each clip, the objects in each of its frames; values in [0, 1]."""
    if clips_NFHW3.ndim != 5:
        raise ValueError(f"clips have shape {clips_NFHW3.shape}; expected [count, frames, height, width, 3]")
    count, frames = clips_NFHW3.shape[:2]
    found = detector.read(clips_NFHW3.reshape(-1, *clips_NFHW3.shape[2:]))
    return [tuple(found[i * frames : (i + 1) * frames]) for i in range(count)]


def verdicts(motion: Motion, found: Sequence[Sequence[Found]], clip_FHW3: Array) -> dict[str, bool]:
    """Every column of `motions.TASKS` for one clip. A frame without a thing, or with two, fails all but background."""
    quiet = _quiet(clip_FHW3)
    if any(len(frame) != 1 for frame in found):
        return {
            "thing": False, "direction": False, "speed": False, "subject": False, "smoothness": False,
            "dynamics": False, "background": quiet,
        }  # fmt: skip
    things = [frame[0] for frame in found]
    places = np.array([(thing.x, thing.y) for thing in things])
    steps = np.diff(places, axis=0)
    mean = steps.mean(0)
    moved = float(np.hypot(*(places[-1] - places[0])))
    along = float(mean @ np.array(DIRECTIONS[motion.direction]))
    pace = min(SPEEDS, key=lambda name: abs(float(np.hypot(*mean)) - SPEEDS[name]))
    return {
        "thing": all(thing.colour == motion.colour and thing.shape == motion.shape for thing in things),
        "direction": moved >= MOVED and along > 0.8 * float(np.hypot(*mean)),
        "speed": moved >= MOVED and pace == motion.speed,
        "subject": len({(thing.colour, thing.shape) for thing in things}) == 1 and things[0].shape != "",
        "smoothness": bool(np.hypot(*(steps - mean).T).max() < JERK),
        "dynamics": moved >= MOVED,
        "background": quiet,
    }


def _quiet(clip_FHW3: Array) -> bool:
    """Whether what no thing ever covers is the world's background, in every frame."""
    away = np.abs(clip_FHW3.astype(np.float32) - np.array(rendering.BACKGROUND, np.float32)).max(-1)
    cover = detector.covered(clip_FHW3).max(0)
    rest = np.median(cover) < _COVERED and cover < _COVERED
    return bool(np.any(rest)) and bool(away[:, rest].mean(1).max() < QUIET)


def features(clips_NFHW3: Array) -> Array:
    """Fixed features for a Frechet distance: those of the first picture, and how the last one differs."""
    first, last = detector.features(clips_NFHW3[:, 0]), detector.features(clips_NFHW3[:, -1])
    joined: Array = np.concatenate([first, last - first], 1)
    return joined
