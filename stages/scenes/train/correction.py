"""The nearest right scene: what a picture shows, changed as little as makes it what was asked for.

A model learns from it on its own pictures (walks.py): where they are right they stay, but for being drawn anew from
what was read; where they are wrong the world says what should have stood there. Ours; of the papers, DAgger (Ross et
al. 1011.0686) is nearest: an expert's answers in the states that the learner itself comes to.
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
"""What a thing costs that stands where nothing was found; a wrong colour and a wrong shape cost 1 each."""
_TRIES = 50


def nearest(request: Request, found: Sequence[Detection], rng: np.random.Generator) -> tuple[Thing, ...]:
    """A scene that `request` asks for, whose things stand where something was found, as it was found, if they can.

    Things are given places so that the fewest colours and shapes change; what has no place is put where there is room,
    and what is left over goes. Where no such scene obeys the world's rules (gaps, the relation), a new one is drawn.
    """
    kinds = request.things * request.count
    places: list[Detection | None] = [*found, *(None for _ in kinds)]
    cost = [[_cost(kind, place) for place in places] for kind in kinds]
    taken = [places[i] for i in linear_sum_assignment(cost)[1]]
    for order in (taken, taken[::-1]):
        things = _placed(kinds, order, rng)
        if rendering.satisfies(request, things):
            return things
    return rendering.place(request, rng)


def _cost(kind: tuple[str, str], place: Detection | None) -> float:
    if place is None:
        return _NEW_PLACE
    colour, shape = kind
    return float(bool(colour) and colour != place.colour) + float(shape != place.shape)


def _placed(
    kinds: Sequence[tuple[str, str]], places: Sequence[Detection | None], rng: np.random.Generator
) -> tuple[Thing, ...]:
    """Each kind at its place, of a size and within the edges that the world keeps; new places come last."""
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
            made = colour or (place.colour if place else tuple(COLOURS)[rng.integers(len(COLOURS))])
            things[i] = Thing(colour=made, shape=shape, x=float(x), y=float(y), radius=float(radius))
            if rendering.are_apart(things.values()):
                break
    return tuple(things[i] for i in range(len(kinds)))
