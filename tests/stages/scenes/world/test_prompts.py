"""Prompts of the three worlds."""

from __future__ import annotations

import pytest

from adatsq_pipe.stages.scenes.world import captions, motions, prompts


def test_a_prompt_means_what_its_world_says() -> None:
    assert prompts.parse_prompt("a red circle", "scenes") == captions.parse("a red circle")
    assert prompts.parse_prompt(" 4 ", "classes") == captions.parse("a green circle")
    text = "a red circle moving up fast"
    assert prompts.parse_prompt(text, "motions") == motions.parse(text)


@pytest.mark.parametrize(
    ("prompt", "world", "message"),
    [
        ("a red circle", "motions", "no clip"),
        ("a dog", "scenes", "no picture"),
        ("99", "classes", "no class 99"),
        ("a circle", "classes", "not a class label"),
        ("a", "elsewhere", "no world"),
    ],
)
def test_a_prompt_of_another_world_is_refused_in_one_line(prompt: str, world: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        prompts.parse_prompt(prompt, world)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("world", ["scenes", "motions"])
def test_calibration_and_evaluation_share_no_combination(world: str) -> None:
    train, held_out = (
        {prompts.parse_prompt(p, world) for p in prompts.draw_prompts(600, world=world, split=split, seed=0)}
        for split in ("train", "held_out")
    )
    both = {getattr(request, "task", "") for request in train & held_out}
    assert both <= {"single", "two"}


def test_class_labels_come_each_once_before_they_repeat() -> None:
    labels = prompts.draw_prompts(30, world="classes", split="train", seed=0)
    assert sorted(labels[:24], key=int) == [str(i) for i in range(24)]
    assert labels[24:] == labels[:6]
    assert labels != prompts.draw_prompts(30, world="classes", split="held_out", seed=0)
