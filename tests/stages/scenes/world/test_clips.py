"""The moving world: clips show their captions and are judged right; wrong ones fail in the right column."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adatsq_pipe.stages.scenes.world import clips, motions, prompts, rendering, scorer
from adatsq_pipe.stages.scenes.world.detector import Array
from adatsq_pipe.stages.scenes.world.motions import Motion

RED = Motion(colour="red", shape="circle", direction="left", speed="fast")


def _clip(motion: Motion, seed: int = 0) -> Array:
    return scorer.ground_truth([motion], np.random.default_rng(seed))[0]


def _verdicts(motion: Motion, clip: Array) -> dict[str, bool]:
    return scorer.verdicts([motion], clip[None])[0]


def test_every_motion_is_judged_right() -> None:
    wanted = list(motions.ALL_MOTIONS) * 3
    told = scorer.verdicts(wanted, scorer.ground_truth(wanted, np.random.default_rng(0)))
    assert all(set(each) == set(motions.TASKS) for each in told)
    for task in motions.TASKS:
        assert np.mean([each[task] for each in told]) >= 0.995, task


def test_things_stay_inside() -> None:
    rng = np.random.default_rng(1)
    for motion in motions.ALL_MOTIONS:
        for thing in rendering.place_motion(motion, rng):
            assert thing.radius < thing.x < rendering.SIZE - thing.radius
            assert thing.radius < thing.y < rendering.SIZE - thing.radius


@pytest.mark.parametrize(
    ("asked", "fails"),
    [
        (replace(RED, colour="blue"), {"thing"}),
        (replace(RED, shape="cross"), {"thing"}),
        (replace(RED, direction="right"), {"direction"}),
        (replace(RED, direction="up"), {"direction"}),
        (replace(RED, speed="slowly"), {"speed"}),
    ],
)
def test_what_was_not_asked_for_fails_in_its_column(asked: Motion, fails: set[str]) -> None:
    told = _verdicts(asked, _clip(RED))
    assert {task for task, right in told.items() if not right} == fails


def test_a_clip_that_does_not_hold_together_fails() -> None:
    clip = _clip(RED)
    still = np.repeat(clip[:1], len(clip), 0)
    assert not any(_verdicts(RED, still)[task] for task in ("dynamics", "direction", "speed"))
    jumping = clip[[0, 3, 1, 4, 2]]
    assert not _verdicts(RED, jumping)["smoothness"]
    other = clip.copy()
    other[4] = _clip(replace(RED, colour="green"))[4]
    assert not _verdicts(RED, other)["subject"] and not _verdicts(RED, other)["thing"]
    empty = clip.copy()
    empty[3] = np.array(rendering.BACKGROUND)
    assert not _verdicts(RED, empty)["subject"] and _verdicts(RED, empty)["background"]


def test_a_background_that_flickers_fails() -> None:
    clip = _clip(RED)
    flicker = clip.copy()
    flicker[2] = np.maximum(flicker[2], 0.25)
    assert not _verdicts(RED, flicker)["background"]
    assert not _verdicts(RED, np.ones_like(clip))["background"]


def test_splits_share_no_motion() -> None:
    parts = [
        {motions.parse(p) for p in prompts.draw_prompts(400, world="motions", split=split, seed=0)}
        for split in ("train", "held_out")
    ]
    assert not parts[0] & parts[1] and parts[0] | parts[1] == set(motions.ALL_MOTIONS)


def test_captions_outside_the_grammar_are_refused_in_one_line() -> None:
    assert motions.parse("A red circle  moving left fast.") == RED
    for prompt, world_ in (("a red circle", "motions"), ("a dog", "scenes"), ("99", "classes"), ("a", "elsewhere")):
        with pytest.raises(ValueError, match=r"there is no|no picture|no clip"):
            prompts.parse_prompt(prompt, world_)


def test_clips_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        clips.detect(np.zeros((3, 32, 32, 3), np.float32))
