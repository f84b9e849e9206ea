"""The scorer: GenEval's rules by hand, and rendered pictures against captions that are true or false of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adatsq_pipe.stages.scenes.world import captions, detector, motions, rendering, scorer
from adatsq_pipe.stages.scenes.world.captions import COLOURS, RELATIONS, SHAPES, Request, parse
from adatsq_pipe.stages.scenes.world.detector import Array, Detection

COUNT = 1200
Scenes = list[tuple[rendering.Thing, ...]]


def _object(colour: str, shape: str, x: float = 16, y: float = 16, radius: float = 5) -> Detection:
    return Detection(colour=colour, shape=shape, x=x, y=y, radius=radius, overlap=1.0)


RED_CIRCLE = _object("red", "circle", x=8)
BLUE_SQUARE = _object("blue", "square", x=24)


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("a circle", True),
        ("a cross", False),
        ("a circle and a square", True),
        ("a circle and a cross", False),
        ("a red circle", True),
        ("a blue circle", False),
        ("a red square", False),
        ("a red circle and a blue square", True),
        ("a blue square and a red circle", True),
        ("a blue circle and a red square", False),
        ("a red circle left of a blue square", True),
        ("a blue square right of a red circle", True),
        ("a red circle right of a blue square", False),
        ("a red circle above a blue square", False),
        ("two red circles", False),
    ],
)
def test_a_red_circle_left_of_a_blue_square_is_what_it_is(caption: str, right: bool) -> None:
    assert scorer.is_correct(parse(caption), [RED_CIRCLE, BLUE_SQUARE]) is right


def test_counting_wants_exactly_the_number() -> None:
    circles = [_object("red", "circle", x=4 * i) for i in range(5)]
    for count in range(6):
        found = [*circles[:count], BLUE_SQUARE]
        assert scorer.is_correct(parse("two red circles"), found) is (count == 2)
        assert scorer.is_correct(parse("three red circles"), found) is (count == 3)
        assert scorer.is_correct(parse("four red circles"), found) is (count == 4)


def test_one_object_is_not_two() -> None:
    assert not scorer.is_correct(Request(task="two", things=(("", "circle"), ("", "circle"))), [RED_CIRCLE])
    assert not scorer.is_correct(parse("a red circle and a blue square"), [RED_CIRCLE])


@pytest.mark.parametrize("relation", RELATIONS)
def test_an_offset_counts_from_a_tenth_of_both_sizes(relation: str) -> None:
    """Radii of 5 and 5: a tenth of both sizes is 0.1 * (10 + 10) = 2 pixels."""
    x, y = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[relation]
    b = _object("blue", "square", x=16, y=16)
    for distance, stands in ((1.9, False), (2.1, True), (-2.1, False)):
        a = _object("red", "circle", x=16 + distance * x, y=16 + distance * y)
        assert scorer.stands_in_relation(relation, a, b) is stands


@pytest.mark.parametrize("relation", RELATIONS)
def test_an_offset_leans_at_most_60_degrees(relation: str) -> None:
    base = {"left of": 180.0, "right of": 0.0, "above": 270.0, "below": 90.0}[relation]
    for angle, stands in ((0, True), (55, True), (-55, True), (65, False), (-65, False), (180, False)):
        turn = np.deg2rad(base + angle)
        a = _object("red", "circle", 16 + 1200 * np.cos(turn), 16 + 1200 * np.sin(turn), radius=0.5)
        b = _object("red", "circle", 16, 16, radius=0.5)
        assert scorer.stands_in_relation(relation, a, b) is stands, angle


def _pictures(scenes: Scenes) -> Array:
    pictures: Array = ((rendering.render(scenes) + 1) / 2).permute(0, 2, 3, 1).numpy()
    return pictures


Truth = tuple[list[Request], Scenes, list[tuple[Detection, ...]]]


@pytest.fixture(scope="module")
def truth() -> Truth:
    rng = np.random.default_rng(11)
    requests = [captions.draw_request(rng, split=captions.SPLITS[i % 2]) for i in range(COUNT)]
    scenes = [rendering.place(request, rng) for request in requests]
    return requests, scenes, detector.detect(_pictures(scenes))


def test_rendered_scenes_are_right_and_nothing_else_is_seen(truth: Truth) -> None:
    requests, scenes, found = truth
    right = [scorer.is_correct(request, things) for request, things in zip(requests, found, strict=True)]
    assert np.mean(right) >= 0.995
    exact = [
        sorted((t.colour, t.shape) for t in scene) == sorted((f.colour, f.shape) for f in things)
        for scene, things in zip(scenes, found, strict=True)
    ]
    assert np.mean(exact) >= 0.995


def _other(value: str, among: tuple[str, ...], rng: np.random.Generator) -> str:
    return str(rng.choice([v for v in among if v != value]))


def _contradiction(request: Request, rng: np.random.Generator) -> Request:
    """A request that a true picture of `request` does not fulfil, in a single point."""
    (colour, shape), *rest = request.things
    if request.count > 1:
        return replace(request, count=request.count % 4 + 1 if request.count < 4 else 2)
    if request.relation:
        opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        return replace(request, relation=opposite[request.relation])
    if colour and rng.random() < 0.5:
        free = tuple(c for c in COLOURS if c not in [thing[0] for thing in rest])
        return replace(request, things=((_other(colour, free, rng), shape), *rest))
    free = tuple(s for s in SHAPES if s not in [thing[1] for thing in rest])
    return replace(request, things=((colour, _other(shape, free, rng)), *rest))


def test_a_picture_is_wrong_for_a_caption_that_contradicts_it(truth: Truth) -> None:
    requests, _, found = truth
    rng = np.random.default_rng(12)
    fooled = [
        request.caption
        for request, things in zip(requests, found, strict=True)
        if scorer.is_correct(_contradiction(request, rng), things)
    ]
    assert len(fooled) <= 0.005 * COUNT, fooled[:10]


def test_verdicts_are_named_by_task_and_come_in_order() -> None:
    red = (rendering.Thing(colour="red", shape="circle", x=16, y=16),)
    pictures = _pictures([red, red])
    requests = [parse("a red circle"), parse("two red circles")]
    assert scorer.verdicts(requests, pictures) == [{"colours": True}, {"counting": False}]
    with pytest.raises(ValueError, match="longer"):
        scorer.verdicts(requests[:1], pictures)


def test_the_ground_truth_is_what_was_requested() -> None:
    rng = np.random.default_rng(0)
    requests = [parse("a red circle"), parse("a blue square")]
    pictures = scorer.ground_truth(requests, rng)
    assert pictures.shape == (2, 32, 32, 3) and pictures.dtype == np.float32
    assert [v["colours"] for v in scorer.verdicts([parse("a red circle"), parse("a blue square")], pictures)] == [
        True
    ] * 2
    clips = scorer.ground_truth(motions.ALL_MOTIONS[:3], rng)
    assert clips.shape == (3, 5, 32, 32, 3)
    assert all(all(verdict.values()) for verdict in scorer.verdicts(motions.ALL_MOTIONS[:3], clips))


def test_the_overlap_falls_as_pictures_get_less_clean() -> None:
    rng = np.random.default_rng(5)
    clean = _pictures([rendering.place(captions.draw_request(rng, split="train"), rng) for _ in range(40)])
    soft = (clean + np.roll(clean, 1, 1) + np.roll(clean, 1, 2) + np.roll(clean, (1, 1), (1, 2))) / 4
    noisy = (clean + 0.15 * rng.standard_normal(clean.shape)).clip(0, 1).astype(np.float32)
    of_clean, of_soft, of_noisy, of_black = map(scorer.mean_overlap, (clean, soft, noisy, np.zeros_like(clean)))
    assert of_clean.shape == (40,) and of_clean.min() > 0.9
    assert (of_clean - of_soft).mean() > 0.02 and (of_clean - of_noisy).mean() > 0.05
    assert not of_black.any()
    clips = np.stack([clean[:3], soft[:3]], 1)
    assert scorer.mean_overlap(clips) == pytest.approx((of_clean[:3] + of_soft[:3]) / 2)


def test_the_overlap_is_the_mean_of_the_objects() -> None:
    picture = np.broadcast_to(np.array(rendering.BACKGROUND, np.float32), (1, 32, 32, 3)).copy()
    picture[0, 3:11, 3:11] = COLOURS["red"]
    picture[0, 20:22, 3:29] = COLOURS["blue"]
    (square, bar) = sorted(detector.detect(picture)[0], key=lambda thing: thing.y)
    assert square.overlap == pytest.approx(1, abs=1e-3) and bar.overlap < 0.7
    assert scorer.mean_overlap(picture)[0] == pytest.approx((square.overlap + bar.overlap) / 2)


def test_features_of_a_clip_are_its_first_frame_and_the_change_to_its_last() -> None:
    clips = scorer.ground_truth(motions.ALL_MOTIONS[:2], np.random.default_rng(0))
    first, last = detector.features(clips[:, 0]), detector.features(clips[:, 4])
    assert scorer.features(clips) == pytest.approx(np.concatenate([first, last - first], 1))
    assert scorer.features(clips[:, 0]) == pytest.approx(first)
