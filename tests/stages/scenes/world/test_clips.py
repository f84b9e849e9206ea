"""Scores of clips: verdicts by hand from positions, and rendered clips against motions that are not theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adatsq_pipe.stages.scenes.world import clips, motions, rendering, scorer
from adatsq_pipe.stages.scenes.world.detector import Array, Detection
from adatsq_pipe.stages.scenes.world.motions import Motion

RED = Motion(colour="red", shape="circle", direction="left", speed="fast")
EMPTY = np.broadcast_to(np.array(rendering.BACKGROUND, np.float32), (5, 32, 32, 3))


def _frames(*places: tuple[float, float]) -> list[tuple[Detection, ...]]:
    return [(Detection(colour="red", shape="circle", x=x, y=y, radius=5, overlap=1),) for x, y in places]


def _failures(motion: Motion, frames: list[tuple[Detection, ...]]) -> set[str]:
    return {task for task, right in clips.verdicts(motion, frames, EMPTY).items() if not right}


def test_positions_decide_direction_speed_and_smoothness() -> None:
    fast = _frames((24, 16), (20.5, 16), (17, 16), (13.5, 16), (10, 16))
    assert _failures(RED, fast) == set()
    assert _failures(replace(RED, direction="right"), fast) == {"direction"}
    assert _failures(replace(RED, direction="up"), fast) == {"direction"}
    assert _failures(replace(RED, speed="slowly"), fast) == {"speed"}
    slow = _frames((20, 16), (18.75, 16), (17.5, 16), (16.25, 16), (15, 16))
    assert _failures(RED, slow) == {"speed"}
    assert _failures(replace(RED, speed="slowly"), slow) == set()


def test_speeds_part_at_the_middle_of_the_two() -> None:
    for step, failures in ((2.3, {"speed"}), (2.45, set())):
        assert _failures(RED, _frames(*((24 - step * i, 16) for i in range(5)))) == failures


def test_a_direction_may_lean_until_a_cosine_of_four_fifths() -> None:
    for dx, dy, failures in ((-3, 2.2, set()), (-3, 2.3, {"direction"})):
        assert _failures(RED, _frames(*((24 + dx * i, 10 + dy * i) for i in range(5)))) == failures


def test_a_step_that_is_off_by_more_than_the_jerk_is_not_smooth() -> None:
    for shift, failures in ((1.4, set()), (1.6, {"smoothness"})):
        assert _failures(RED, _frames((24, 16), (20.5 - shift, 16), (17, 16), (13.5, 16), (10, 16))) == failures


def test_less_than_three_pixels_are_no_movement() -> None:
    still = _frames(*((20 - 0.7 * i, 16) for i in range(5)))
    assert _failures(replace(RED, speed="slowly"), still) == {"direction", "speed", "dynamics"}


def test_a_frame_with_no_object_or_two_fails_all_but_the_background() -> None:
    frames = _frames((24, 16), (20.5, 16), (17, 16), (13.5, 16), (10, 16))
    everything = set(motions.TASKS) - {"background"}
    assert _failures(RED, [*frames[:4], ()]) == everything
    assert _failures(RED, [*frames[:4], frames[0] * 2]) == everything


def test_a_clip_has_the_verdicts_of_every_task() -> None:
    assert list(clips.verdicts(RED, _frames(*[(16.0, 16.0)] * 5), EMPTY)) == list(motions.TASKS)
    assert list(clips.verdicts(RED, [()] * 5, EMPTY)) == list(motions.TASKS)


def _clip(motion: Motion, seed: int = 0) -> Array:
    return scorer.ground_truth([motion], np.random.default_rng(seed))[0]


def _verdicts(motion: Motion, clip: Array) -> dict[str, bool]:
    return scorer.verdicts([motion], clip[None])[0]


def test_every_rendered_motion_is_right() -> None:
    requests = list(motions.ALL_MOTIONS) * 2
    verdicts = scorer.verdicts(requests, scorer.ground_truth(requests, np.random.default_rng(0)))
    for task in motions.TASKS:
        assert np.mean([each[task] for each in verdicts]) >= 0.995, task


@pytest.mark.parametrize(
    ("motion", "failures"),
    [
        (replace(RED, colour="blue"), {"thing"}),
        (replace(RED, shape="cross"), {"thing"}),
        (replace(RED, direction="right"), {"direction"}),
        (replace(RED, speed="slowly"), {"speed"}),
    ],
)
def test_a_rendered_clip_fails_where_its_caption_differs(motion: Motion, failures: set[str]) -> None:
    verdicts = _verdicts(motion, _clip(RED))
    assert {task for task, right in verdicts.items() if not right} == failures


def test_a_thing_that_changes_is_not_one_subject() -> None:
    clip = _clip(RED)
    clip[4] = _clip(replace(RED, colour="green"))[4]
    verdicts = _verdicts(RED, clip)
    assert not verdicts["subject"] and not verdicts["thing"]


def test_frames_out_of_order_are_not_smooth() -> None:
    assert not _verdicts(RED, _clip(RED)[[0, 3, 1, 4, 2]])["smoothness"]


def test_a_background_that_flickers_or_is_gone_is_not_clean() -> None:
    clip = _clip(RED)
    assert _verdicts(RED, clip)["background"]
    flicker = clip.copy()
    flicker[2] = np.maximum(flicker[2], 0.25)
    assert not _verdicts(RED, flicker)["background"]
    assert not _verdicts(RED, np.ones_like(clip))["background"]
    for brighter, clean in ((0.04, True), (0.06, False)):
        haze = clip.copy()
        haze[3] += np.where(haze[3] == EMPTY[3], np.float32(brighter), np.float32(0))
        assert _verdicts(RED, haze)["background"] is clean


def test_frames_are_detected_clip_by_clip() -> None:
    both = np.stack([_clip(RED), _clip(replace(RED, colour="blue"))])
    found = clips.detect(both)
    assert [[frame[0].colour for frame in clip] for clip in found] == [["red"] * 5, ["blue"] * 5]


def test_clips_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        clips.detect(np.zeros((3, 32, 32, 3), np.float32))
