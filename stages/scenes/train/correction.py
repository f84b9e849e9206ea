"""The nearest correct scene: the smallest change of a picture that makes it show what was requested.

A model learns from it on its own pictures (trajectories.py): where a picture is correct it stays, redrawn cleanly;
where it is wrong, the correction is the target. The method is ours. The nearest in the literature is DAgger (Ross et
al. 1011.0686): an expert's answers in the states that the learner itself reaches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from adatsq_pipe.stages.scenes.world import rendering
from adatsq_pipe.stages.scenes.world.captions import COLOURS, Request
from adatsq_pipe.stages.scenes.world.detector import Detection
from adatsq_pipe.stages.scenes.world.rendering import Thing

_NEW_PLACE = 3.0
"""Cost of a thing where nothing was detected; a wrong colour and a wrong shape cost 1 each."""
_TRIES = 50


def nearest(request: Request, detections: Sequence[Detection], rng: np.random.Generator) -> tuple[Thing, ...]:
    """A scene that `request` asks for, whose things stand where objects were detected, where possible.

    Things are assigned to detections so that the fewest colours and shapes change. A missing thing is put where there
    is room, and a surplus detection is dropped. If the result breaks the world's rules (gaps, the relation), in this
    and in the reversed order, a new scene is drawn.
    """
    kinds = request.things * request.count
    places: list[Detection | None] = [*detections, *(None for _ in kinds)]
    cost = [[_cost(kind, place) for place in places] for kind in kinds]
    assigned = [places[i] for i in linear_sum_assignment(cost)[1]]
    for order in (assigned, assigned[::-1]):
        things = _place(kinds, order, rng)
        if rendering.satisfies(request, things):
            return things
    return rendering.place(request, rng)


def _cost(kind: tuple[str, str], place: Detection | None) -> float:
    if place is None:
        return _NEW_PLACE
    colour, shape = kind
    return float(bool(colour) and colour != place.colour) + float(shape != place.shape)


def _place(
    kinds: Sequence[tuple[str, str]], places: Sequence[Detection | None], rng: np.random.Generator
) -> tuple[Thing, ...]:
    """Each kind at its place, with the world's sizes and margins; things without a detection are placed last."""
    base = rendering.RADII[len(kinds)]
    things: dict[int, Thing] = {}
    for i in sorted(range(len(kinds)), key=lambda i: places[i] is None):
        (colour, shape), place = kinds[i], places[i]
        radius = base * (
            rng.uniform(*rendering.SPREAD) if place is None else np.clip(place.radius / base, *rendering.SPREAD)
        )
        low, high = radius + rendering.EDGE, rendering.SIZE - radius - rendering.EDGE
        for _ in range(_TRIES if place is None else 1):
            x, y = rng.uniform(low, high, 2) if place is None else np.clip((place.x, place.y), low, high)
            name = colour or (place.colour if place else tuple(COLOURS)[rng.integers(len(COLOURS))])
            things[i] = Thing(colour=name, shape=shape, x=float(x), y=float(y), radius=float(radius))
            if rendering.are_apart(things.values()):
                break
    return tuple(things[i] for i in range(len(kinds)))
