"""The detector finds what was drawn, in pictures painted here by hand and in rendered scenes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from adatsq_pipe.stages.scenes.world import captions, detector, rendering
from adatsq_pipe.stages.scenes.world.captions import COLOURS
from adatsq_pipe.stages.scenes.world.detector import Array


def _empty(size: int = 32) -> Array:
    return np.broadcast_to(np.array(rendering.BACKGROUND, np.float32), (size, size, 3)).copy()


def _square(colour: str, share: float = 1.0) -> Array:
    """Rows 10 to 17 and columns 4 to 11 of `colour`, mixed with the background."""
    picture = _empty()
    patch = picture[10:18, 4:12]
    picture[10:18, 4:12] = share * np.array(COLOURS[colour], np.float32) + (1 - share) * patch
    return picture


@pytest.mark.parametrize("colour", COLOURS)
def test_a_painted_square_is_found_where_it_is(colour: str) -> None:
    (thing,) = detector.detect(_square(colour)[None])[0]
    assert (thing.colour, thing.shape) == (colour, "square")
    assert (thing.x, thing.y) == pytest.approx((8, 14), abs=1e-3)
    assert thing.radius == pytest.approx(4 / 0.86, rel=1e-3)
    assert thing.overlap == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_faint_object_keeps_its_colour(colour: str) -> None:
    (thing,) = detector.detect(_square(colour, 0.7)[None])[0]
    assert thing.colour == colour


def test_coverage_is_the_share_of_the_colour() -> None:
    picture = _square("red", 0.3)
    cover = detector.coverage(picture[None])[0]
    assert cover[12, 6] == pytest.approx(0.3, abs=1e-6)
    assert cover[0, 0] == pytest.approx(0, abs=1e-6)


def test_less_than_nine_pixels_are_no_object() -> None:
    picture = _empty()
    picture[4:6, 4:8] = COLOURS["green"]
    assert detector.detect(picture[None])[0] == ()
    picture[4:7, 4:7] = COLOURS["green"]
    assert len(detector.detect(picture[None])[0]) == 1


def test_objects_of_one_colour_apart_are_two_and_the_largest_comes_first() -> None:
    picture = _square("blue")
    picture[20:31, 20:31] = COLOURS["blue"]
    sizes = [thing.radius for thing in detector.detect(picture[None])[0]]
    assert sizes == pytest.approx([5.5 / 0.86, 4 / 0.86], rel=1e-3)


def test_objects_of_two_colours_that_touch_are_two() -> None:
    picture = _square("red")
    picture[10:18, 12:20] = COLOURS["white"]
    found = {thing.colour: (thing.x, thing.y) for thing in detector.detect(picture[None])[0]}
    assert found["red"] == pytest.approx((8, 14), abs=1e-3)
    assert found["white"] == pytest.approx((16, 14), abs=1e-3)


def test_a_patch_larger_than_any_thing_has_no_name() -> None:
    picture = _empty(64)
    picture[10:40, 10:40] = COLOURS["red"]
    (wall,) = detector.detect(picture[None])[0]
    assert wall.shape == ""


@pytest.mark.parametrize(("height", "width"), [(2, 26), (6, 12)])
def test_a_bar_looks_like_none_of_the_shapes(height: int, width: int) -> None:
    picture = _empty()
    picture[10 : 10 + height, 3 : 3 + width] = COLOURS["red"]
    (bar,) = detector.detect(picture[None])[0]
    assert bar.shape == ""


def test_the_overlap_of_an_oblong_with_a_square_of_its_area_is_their_intersection_over_their_union() -> None:
    """An oblong of 9 x 8 and the square of side sqrt(72) share 8 x sqrt(72) pixels."""
    picture = _empty()
    picture[10:18, 4:13] = COLOURS["red"]
    (oblong,) = detector.detect(picture[None])[0]
    shared = 8 * np.sqrt(72)
    assert oblong.shape == "square"
    assert oblong.overlap == pytest.approx(shared / (2 * 72 - shared), abs=0.03)


@pytest.fixture(scope="module")
def single_things() -> list[rendering.Thing]:
    rng = np.random.default_rng(11)
    requests = [r for r in captions.ALL_REQUESTS if r.task == "colours"] * 8
    return [rendering.place(request, rng)[0] for request in requests]


def test_rendered_places_and_sizes_are_measured_to_a_fifth_of_a_pixel(single_things: list[rendering.Thing]) -> None:
    pictures = _pictures([(thing,) for thing in single_things])
    for thing, found in zip(single_things, detector.detect(pictures), strict=True):
        (seen,) = found
        assert (seen.colour, seen.shape) == (thing.colour, thing.shape)
        assert max(abs(thing.x - seen.x), abs(thing.y - seen.y), abs(thing.radius - seen.radius)) < 0.2
        assert seen.overlap > 0.9


def test_a_blurred_picture_is_still_read_and_a_smeared_one_is_not(single_things: list[rendering.Thing]) -> None:
    pictures = _pictures([(thing,) for thing in single_things])
    for sigma, least, most in ((0.5, 0.95, 1.0), (6.0, 0.0, 0.2)):
        soft = np.stack([ndimage.gaussian_filter(picture, (sigma, sigma, 0)) for picture in pictures])
        right = [
            any((seen.colour, seen.shape) == (thing.colour, thing.shape) for seen in found)
            for thing, found in zip(single_things, detector.detect(soft), strict=True)
        ]
        assert least <= np.mean(right) <= most, sigma


@pytest.mark.parametrize("name", ["empty", "noise", "grey", "black", "flat red"])
def test_pictures_of_nothing_hold_no_named_object(name: str) -> None:
    picture = {
        "empty": _empty(),
        "noise": np.random.default_rng(3).random((32, 32, 3)),
        "grey": np.full((32, 32, 3), 0.4),
        "black": np.zeros((32, 32, 3)),
        "flat red": np.broadcast_to(np.array(COLOURS["red"]), (32, 32, 3)),
    }[name]
    assert not [thing for thing in detector.detect(picture[None].astype(np.float32))[0] if thing.shape]


def test_features_are_cell_means_and_colour_shares() -> None:
    picture = _empty()
    picture[:16, :16] = COLOURS["red"]
    picture[24:, 24:] = COLOURS["white"]
    (row,) = detector.features(picture[None])
    assert row.shape == (54,)
    cells = row[:48].reshape(4, 4, 3)
    assert cells[1, 1].tolist() == pytest.approx(COLOURS["red"], abs=1e-6)
    assert cells[3, 3].tolist() == pytest.approx(COLOURS["white"], abs=1e-6)
    assert cells[0, 3].tolist() == pytest.approx(rendering.BACKGROUND, abs=1e-6)
    assert row[48:].tolist() == pytest.approx([0.25, 0, 0, 0, 0, 1 / 16], abs=1e-6)


def test_pictures_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        detector.detect(np.zeros((32, 32, 3), np.float32))


def _pictures(scenes: list[tuple[rendering.Thing, ...]]) -> Array:
    pictures: Array = ((rendering.render(scenes) + 1) / 2).permute(0, 2, 3, 1).numpy()
    return pictures
