"""The nearest correct scene is correct, and keeps what was correct already."""

from __future__ import annotations

import numpy as np
import pytest

from adatsq_pipe.stages.scenes.train import correction
from adatsq_pipe.stages.scenes.world import captions, detector, rendering, scorer
from adatsq_pipe.stages.scenes.world.captions import parse
from adatsq_pipe.stages.scenes.world.detector import Array, Detection
from adatsq_pipe.stages.scenes.world.rendering import Thing


def _shown(*scenes: tuple[Thing, ...]) -> Array:
    picture: Array = ((rendering.render(scenes) + 1) / 2).movedim(1, -1).numpy()
    return picture


def _detections(*things: Thing) -> tuple[Detection, ...]:
    return detector.detect(_shown(things))[0]


LEFT = Thing(colour="red", shape="circle", x=8, y=16, radius=5.2)
RIGHT = Thing(colour="red", shape="circle", x=23, y=17, radius=5.2)


@pytest.mark.parametrize("task", captions.TASKS)
def test_the_scene_is_what_is_requested_whatever_was_detected(task: str) -> None:
    rng = np.random.default_rng(0)
    requests = [r for r in captions.requests(240, split="held_out", seed=3) if r.task == task]
    others = captions.requests(len(requests), split="train", seed=4)
    detections = [() if i % 5 == 0 else f for i, f in enumerate(detector.detect(scorer.ground_truth(others, rng)))]
    scenes = [correction.nearest(*each, rng) for each in zip(requests, detections, strict=True)]
    assert all(rendering.satisfies(request, scene) for request, scene in zip(requests, scenes, strict=True))
    right = [all(verdict.values()) for verdict in scorer.verdicts(requests, _shown(*scenes))]
    assert np.mean(right) >= 0.97, "the scorer may take two squares for one whose corners touch"


def test_a_correct_picture_stays() -> None:
    rng = np.random.default_rng(0)
    requests = captions.requests(60, split="train", seed=0)
    for request in requests:
        scene = rendering.place(request, rng)
        again = correction.nearest(request, _detections(*scene), rng)
        assert len(scene) == len(again)
        assert np.abs(_shown(scene) - _shown(again)).max() < 0.35, request.caption


def test_of_two_things_of_one_kind_one_becomes_the_other() -> None:
    scene = correction.nearest(
        parse("a red circle and a blue square"), _detections(LEFT, RIGHT), np.random.default_rng(0)
    )
    assert [(t.colour, t.shape) for t in scene] == [("red", "circle"), ("blue", "square")]
    assert sorted(round(t.x) for t in scene) == [8, 23]


def test_a_wrong_order_is_reversed() -> None:
    square = Thing(colour="blue", shape="square", x=8, y=16, radius=5.2)
    scene = correction.nearest(
        parse("a red circle left of a blue square"), _detections(square, RIGHT), np.random.default_rng(0)
    )
    assert [round(t.x) for t in scene] == [8, 23]


def test_missing_things_are_added_and_surplus_ones_dropped() -> None:
    rng = np.random.default_rng(0)
    three = correction.nearest(parse("three red circles"), _detections(LEFT, RIGHT), rng)
    assert len(three) == 3 and {8, 23} < {round(t.x) for t in three}
    (one,) = correction.nearest(parse("a red circle"), _detections(LEFT, RIGHT), rng)
    assert round(one.x) in (8, 23)


def test_an_open_colour_is_the_detected_one() -> None:
    (one,) = correction.nearest(parse("a square"), _detections(LEFT), np.random.default_rng(0))
    assert (one.colour, one.shape, round(one.x)) == ("red", "square", 8)
