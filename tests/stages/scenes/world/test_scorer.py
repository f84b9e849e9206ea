"""The scorer reads what was rendered, and does not see what is not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adatsq_pipe.stages.scenes.world import captions, detector, metrics, rendering, scorer
from adatsq_pipe.stages.scenes.world.captions import COLOURS, RELATIONS, SHAPES, Request

COUNT = 2000


def _pictures(scenes: list[tuple[rendering.Thing, ...]]) -> detector.Array:
    return ((rendering.render(scenes) + 1) / 2).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def truth() -> tuple[list[Request], list[tuple[rendering.Thing, ...]], list[tuple[detector.Detection, ...]]]:
    rng = np.random.default_rng(11)
    wanted = [captions.draw_request(rng, split=captions.SPLITS[i % 2]) for i in range(COUNT)]
    scenes = [rendering.place(request, rng) for request in wanted]
    return wanted, scenes, detector.detect(_pictures(scenes))


def test_rendered_scenes_are_read_right(truth) -> None:  # type: ignore[no-untyped-def]
    wanted, scenes, found = truth
    right = [scorer.is_correct(request, things) for request, things in zip(wanted, found, strict=True)]
    assert np.mean(right) >= 0.995
    exact = [
        sorted((t.colour, t.shape) for t in scene) == sorted((f.colour, f.shape) for f in things)
        for scene, things in zip(scenes, found, strict=True)
    ]
    assert np.mean(exact) >= 0.995


def test_places_and_sizes_are_read_to_a_fifth_of_a_pixel(truth) -> None:  # type: ignore[no-untyped-def]
    _, scenes, found = truth
    alone = [(scene[0], things[0]) for scene, things in zip(scenes, found, strict=True) if len(scene) == 1]
    assert len(alone) > 100
    for thing, seen in alone:
        assert max(abs(thing.x - seen.x), abs(thing.y - seen.y), abs(thing.radius - seen.radius)) < 0.2


def _other(value: str, among: tuple[str, ...], rng: np.random.Generator) -> str:
    return str(rng.choice([v for v in among if v != value]))


def _contradicted(request: Request, rng: np.random.Generator) -> Request:
    """A request that a true picture of `request` does not fulfil."""
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


def test_wrong_pictures_are_called_wrong(truth) -> None:  # type: ignore[no-untyped-def]
    """Every picture is right for its own caption and wrong for one that contradicts it in a single point."""
    wanted, _, found = truth
    rng = np.random.default_rng(12)
    fooled = [
        request.caption
        for request, things in zip(wanted, found, strict=True)
        if scorer.is_correct(_contradicted(request, rng), things)
    ]
    assert len(fooled) <= 0.005 * COUNT, fooled[:10]


def test_one_object_is_not_two() -> None:
    """A red circle alone is no answer to "a red circle and a blue square", nor to two red circles."""
    found = detector.detect(_pictures([(rendering.Thing(colour="red", shape="circle", x=16, y=16),)]))[0]
    things = (("red", "circle"), ("blue", "square"))
    assert not scorer.is_correct(Request(task="attribution", things=things), found)
    assert not scorer.is_correct(Request(task="counting", things=things[:1], count=2), found)
    assert not scorer.is_correct(Request(task="two", things=(("", "circle"), ("", "circle"))), found)


@pytest.mark.parametrize("what", ["empty", "noise", "grey", "black", "flat red"])
def test_pictures_of_nothing_hold_no_named_object(what: str) -> None:
    rng = np.random.default_rng(3)
    picture = {
        "empty": np.broadcast_to(np.array(rendering.BACKGROUND), (32, 32, 3)),
        "noise": rng.random((32, 32, 3)),
        "grey": np.full((32, 32, 3), 0.4),
        "black": np.zeros((32, 32, 3)),
        "flat red": np.broadcast_to(np.array(COLOURS["red"]), (32, 32, 3)),
    }[what]
    assert not [f for f in detector.detect(picture[None].astype(np.float32))[0] if f.shape]


def test_a_blurred_picture_still_reads_and_a_smeared_one_does_not() -> None:
    from scipy import ndimage

    rng = np.random.default_rng(5)
    requests = [r for r in captions.ALL_REQUESTS if r.task == "colours"]
    pictures = _pictures([rendering.place(r, rng) for r in requests])
    for sigma, least, most in ((0.5, 0.95, 1.0), (6.0, 0.0, 0.2)):
        soft = np.stack([ndimage.gaussian_filter(p, (sigma, sigma, 0)) for p in pictures])
        right = np.mean([scorer.is_correct(r, f) for r, f in zip(requests, detector.detect(soft), strict=True)])
        assert least <= right <= most, (sigma, right)


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_follow_genevals_lean(relation: str) -> None:
    """60 degrees off the axis is the limit; nearer to the axis is right, further off is wrong."""
    base = {"left of": 180.0, "right of": 0.0, "above": 270.0, "below": 90.0}[relation]
    for angle, right in ((0, True), (50, True), (75, False), (180, False)):
        turn = np.deg2rad(base + angle)
        a, b = (
            detector.Detection(colour="red", shape="circle", x=x, y=y, radius=0.5, overlap=1.0)
            for x, y in ((16 + 12 * np.cos(turn), 16 + 12 * np.sin(turn)), (16, 16))
        )
        assert scorer.stands_in_relation(relation, a, b) is right, (relation, angle)


def test_pictures_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        detector.detect(np.zeros((32, 32, 3), np.float32))


def test_the_total_is_the_mean_of_tasks_and_seeds_of_a_caption_are_one_observation() -> None:
    rows = [{"task": "single", "entry": 0, "right": 1} for _ in range(3)]
    rows += [{"task": "counting", "entry": e, "right": int(e == 1)} for e in (1, 2) for _ in range(3)]
    told = metrics.task_means(rows, "right")
    assert told["tasks"]["counting"] == {"mean": 0.5, "standard_error": pytest.approx(0.5), "captions": 2}
    assert told["total"] == {"mean": 0.75, "standard_error": pytest.approx(0.25)}


def test_the_paired_difference_has_its_own_error() -> None:
    same = [{"entry": e, "tasks": ["two"], "right": [e % 2], "reference_right": [e % 2]} for e in range(20)]
    told = metrics.compare(same)
    assert told["difference"] == {"mean": 0.0, "standard_error": 0.0}
    assert told["quantized"]["total"]["standard_error"] > 0.05


def test_captions_are_parsed_back() -> None:
    for request in captions.ALL_REQUESTS[::17]:
        assert captions.parse(request.caption) == request
    assert captions.parse("A Red  circle.").things == (("red", "circle"),)
    with pytest.raises(ValueError, match="do not come in that order"):
        captions.parse("circle a red")


def test_frechet_distance_of_gaussians_is_the_formula() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.normal(0, 1, (40_000, 2)), rng.normal((3, 0), (2, 1), (40_000, 2))
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(a, b) == pytest.approx(9 + 1, abs=0.15)
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a))


def test_features_tell_a_wrong_colour_from_a_second_draw() -> None:
    rng = np.random.default_rng(9)
    red, blue = (Request(task="colours", things=((colour, "circle"),)) for colour in ("red", "blue"))
    sets = [detector.features(_pictures([rendering.place(r, rng) for _ in range(300)])) for r in (red, red, blue)]
    assert metrics.frechet_distance(sets[0], sets[2]) > 3 * metrics.frechet_distance(sets[0], sets[1])


def test_overlap_falls_as_pictures_get_less_clean() -> None:
    rng = np.random.default_rng(5)
    clean = _pictures([rendering.place(captions.draw_request(rng, split="train"), rng) for _ in range(40)])
    soft = (clean + np.roll(clean, 1, 1) + np.roll(clean, 1, 2) + np.roll(clean, (1, 1), (1, 2))) / 4
    noisy = (clean + 0.15 * rng.standard_normal(clean.shape)).clip(0, 1).astype(np.float32)
    shown = [scorer.mean_overlap(pictures) for pictures in (clean, soft, noisy, np.zeros_like(clean))]
    assert shown[0].shape == (40,) and shown[0].min() > 0.9
    assert (shown[0] - shown[1]).mean() > 0.02 and (shown[0] - shown[2]).mean() > 0.05
    assert not shown[3].any()
    assert scorer.mean_overlap(np.stack([clean[:3], soft[:3]], 1)) == pytest.approx((shown[0][:3] + shown[1][:3]) / 2)
