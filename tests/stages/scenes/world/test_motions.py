"""Captions of the moving world and their split."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from adatsq_pipe.stages.scenes.world import motions
from adatsq_pipe.stages.scenes.world.motions import Motion


def test_a_caption_means_its_motion() -> None:
    motion = Motion(colour="red", shape="circle", direction="left", speed="fast")
    assert motions.parse("A red circle  moving left fast.") == motion
    assert motion.caption == "a red circle moving left fast"


def test_there_is_one_motion_for_each_combination() -> None:
    assert len(set(motions.ALL_MOTIONS)) == 6 * 4 * 4 * 2
    assert all(motions.parse(motion.caption) == motion for motion in motions.ALL_MOTIONS)


def test_the_split_is_one_byte_of_the_captions_hash() -> None:
    held_out = {m for m in motions.ALL_MOTIONS if hashlib.sha256(m.caption.encode()).digest()[0] % 8 == 0}
    assert set(motions.motions(192, split="held_out", seed=0)) == held_out
    assert set(motions.motions(192, split="train", seed=0)) == set(motions.ALL_MOTIONS) - held_out
    rng = np.random.default_rng(0)
    assert not {motions.draw_motion(rng, split="train") for _ in range(2000)} & held_out


def test_a_longer_list_begins_with_the_shorter() -> None:
    assert motions.motions(50, split="train", seed=4)[:20] == motions.motions(20, split="train", seed=4)


def test_captions_outside_the_grammar_are_refused() -> None:
    with pytest.raises(ValueError, match="no clip of 'a red circle'"):
        motions.parse("a red circle")
