"""The built-in world: the split holds, pictures are what was asked, and the shipped model draws what it is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adatsq_pipe.stages.scenes.train import components
from adatsq_pipe.stages.scenes.world import captions, rendering


def test_held_out_combinations_are_in_no_training_caption() -> None:
    train = {r.combination for r in captions.ALL_REQUESTS if not captions.is_held_out(r)}
    held = {r.combination for r in captions.ALL_REQUESTS if captions.is_held_out(r)}
    assert held and train and not held & train
    drawn = captions.requests(400, split="train", seed=1)
    assert not {r.combination for r in drawn if r.task not in captions.TASKS_IN_BOTH_SPLITS} & held
    with pytest.raises(ValueError, match="'test'"):
        captions.requests(1, split="test", seed=0)


def test_a_longer_list_begins_with_the_shorter() -> None:
    assert captions.requests(30, split="held_out", seed=2)[:10] == captions.requests(10, split="held_out", seed=2)


@pytest.mark.parametrize("relation", captions.RELATIONS)
def test_relations_hold_where_things_are_placed(relation: str) -> None:
    request = captions.Request(task="position", things=(("red", "circle"), ("blue", "square")), relation=relation)
    first, second = rendering.place(request, np.random.default_rng(0))
    assert {"left of": first.x < second.x, "right of": first.x > second.x, "above": first.y < second.y}.get(
        relation, first.y > second.y
    )
    picture = (rendering.render([(first, second)])[0] + 1) / 2
    red, green, blue = picture[:, int(first.y), int(first.x)]
    assert red > 0.8 and max(green, blue) < 0.3


def test_counts_are_drawn() -> None:
    from skimage.measure import label

    request = captions.Request(task="counting", things=(("green", "cross"),), count=3)
    picture = rendering.render([rendering.place(request, np.random.default_rng(4))])[0]
    assert label((picture[1] > 0).numpy()).max() == 3


def test_a_batch_is_its_seed() -> None:
    (a, x), (b, y) = rendering.batch((1, 2), 6), rendering.batch((1, 2), 6)
    assert a == b and torch.equal(x, y) and rendering.batch((1, 3), 6)[0] != a


def test_words_outside_the_grammar_become_unknown() -> None:
    words = components.tokenizer()
    assert words.unk_token_id in words("a pink elephant").input_ids
    assert words.unk_token_id not in words("four yellow triangles").input_ids
