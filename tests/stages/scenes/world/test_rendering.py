"""Rendering: areas, colours and places by hand; scenes obey the world's rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from adatsq_pipe.stages.scenes.world import captions, motions, rendering
from adatsq_pipe.stages.scenes.world.rendering import Thing

AREAS = {
    "circle": math.pi * 6**2,
    "square": (2 * 0.86 * 6) ** 2,
    "triangle": 0.5 * (1.6 * 6) * (2 * 0.8 / 0.866 * 6),
    "cross": (2 * 2 * 0.72 - 0.72**2) * 6**2,
}
"""Of radius 6; the cross has two bars of 2 x 0.72 radii that share a square of 0.72."""


def _render(*things: Thing) -> torch.Tensor:
    """One picture `[3, 32, 32]` in [0, 1]."""
    return (rendering.render([things])[0] + 1) / 2


@pytest.mark.parametrize("shape", captions.SHAPES)
def test_a_shape_covers_its_area(shape: str) -> None:
    picture = _render(Thing(colour="white", shape=shape, x=16, y=16, radius=6))
    background = torch.tensor(rendering.BACKGROUND)[:, None, None]
    white = torch.tensor(captions.COLOURS["white"])[:, None, None]
    cover = (picture - background) / (white - background)
    assert cover[0].sum().item() == pytest.approx(AREAS[shape], rel=0.02)


def test_a_thing_has_its_colour_and_the_rest_is_background() -> None:
    picture = _render(Thing(colour="yellow", shape="circle", x=8, y=20, radius=5))
    assert picture[:, 20, 8].tolist() == pytest.approx([0.96, 0.86, 0.18], abs=1e-6)
    assert picture[:, 8, 20].tolist() == pytest.approx([0.09, 0.09, 0.11], abs=1e-6)
    assert picture[:, 20, 14].tolist() == pytest.approx([0.09, 0.09, 0.11], abs=1e-6)


def test_a_pixel_on_the_edge_is_half_covered() -> None:
    picture = _render(Thing(colour="white", shape="square", x=16.5, y=16.5, radius=5 / 0.86))
    expected = (0.94 + 0.09) / 2
    assert picture[0, 16, 21].item() == pytest.approx(expected, abs=1e-5)
    assert picture[0, 16, 11].item() == pytest.approx(expected, abs=1e-5)


def test_a_triangle_points_up() -> None:
    picture = _render(Thing(colour="white", shape="triangle", x=16, y=16, radius=6))[0] > 0.5
    widths = picture.sum(1).tolist()
    rows = [i for i, width in enumerate(widths) if width]
    assert (rows[0], rows[-1]) == (11, 19)
    assert widths[rows[0]] <= 2 and widths[rows[-1]] >= 9


def test_later_things_are_drawn_over_earlier_ones() -> None:
    red = Thing(colour="red", shape="square", x=16, y=16)
    blue = Thing(colour="blue", shape="circle", x=16, y=16)
    assert _render(red, blue)[:, 16, 16].tolist() == pytest.approx([0.18, 0.33, 0.95], abs=1e-6)


@pytest.mark.parametrize(
    ("relation", "dx", "dy"), [("left of", -3, 1), ("right of", 3, -1), ("above", 1, -3), ("below", -1, 3)]
)
def test_the_larger_axis_decides_a_relation(relation: str, dx: float, dy: float) -> None:
    assert [r for r in captions.RELATIONS if rendering.relation_holds(r, dx, dy)] == [relation]


@pytest.mark.parametrize("task", captions.TASKS)
def test_scenes_keep_gaps_margins_sizes_and_relations(task: str) -> None:
    rng = np.random.default_rng(0)
    requests = [r for r in captions.requests(240, split="train", seed=1) if r.task == task]
    for request in requests:
        things = rendering.place(request, rng)
        kinds = list(request.things) * request.count
        assert [thing.shape for thing in things] == [shape for _, shape in kinds]
        assert all(colour in ("", thing.colour) for thing, (colour, _) in zip(things, kinds, strict=True))
        mean = {1: 6.0, 2: 5.2, 3: 4.4, 4: 4.4}[len(things)]
        for i, thing in enumerate(things):
            assert 0.92 * mean <= thing.radius <= 1.08 * mean
            assert all(thing.radius + 0.8 <= at <= 32 - thing.radius - 0.8 for at in (thing.x, thing.y))
            for other in things[:i]:
                distance = math.dist((thing.x, thing.y), (other.x, other.y))
                assert distance - thing.radius - other.radius >= 1.6
        if request.relation:
            (a, b) = things
            ahead = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
            assert ahead[request.relation] == max(ahead.values())


def test_positions_are_those_that_numpys_uniform_draws() -> None:
    """The built-in models were trained on them. A single thing is never drawn again."""
    for seed in range(50):
        (thing,) = rendering.place(captions.parse("a red circle"), np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        radius = 6.0 * rng.uniform(0.92, 1.08, 1)
        x, y = (rng.uniform(radius + 0.8, 32 - radius - 0.8) for _ in range(2))
        assert (thing.radius, thing.x, thing.y) == (radius[0], x[0], y[0])


def test_an_open_colour_is_any_of_them() -> None:
    rng = np.random.default_rng(0)
    colours = {rendering.place(captions.parse("a circle"), rng)[0].colour for _ in range(60)}
    assert colours == set(captions.COLOURS)


def test_a_batch_is_decided_by_its_seed_and_has_training_captions() -> None:
    (a, x), (b, y) = rendering.batch((1, 2), 6), rendering.batch((1, 2), 6)
    assert a == b and torch.equal(x, y) and rendering.batch((1, 3), 6)[0] != a
    texts = rendering.batch((0,), 300)[0]
    requests = [captions.parse(text) for text in texts]
    assert not any(captions.is_held_out(r) for r in requests if r.task not in ("single", "two"))


@pytest.mark.parametrize(
    ("direction", "speed", "step"),
    [
        ("left", "fast", (-3.5, 0)),
        ("right", "slowly", (1.25, 0)),
        ("up", "slowly", (0, -1.25)),
        ("down", "fast", (0, 3.5)),
    ],
)
def test_a_thing_moves_by_its_speed_and_stays_inside(direction: str, speed: str, step: tuple[float, float]) -> None:
    motion = motions.Motion(colour="red", shape="circle", direction=direction, speed=speed)
    for seed in range(20):
        path = rendering.place_motion(motion, np.random.default_rng(seed))
        assert len(path) == 5
        for i, thing in enumerate(path):
            assert (thing.x - path[0].x, thing.y - path[0].y) == pytest.approx((step[0] * i, step[1] * i))
            assert all(thing.radius + 0.8 <= at <= 32 - thing.radius - 0.8 for at in (thing.x, thing.y))
        assert 0.92 * 5 <= path[0].radius <= 1.08 * 5


def test_a_clips_frames_are_its_pictures() -> None:
    motion = motions.ALL_MOTIONS[7]
    paths = [rendering.place_motion(motion, np.random.default_rng(seed)) for seed in (0, 1)]
    clips = rendering.render_clips(paths)
    assert clips.shape == (2, 5, 3, 32, 32)
    assert torch.equal(clips[1, 3], rendering.render([[paths[1][3]]])[0])
