"""Captions: the grammar, the split by combination, and what training and evaluation draw."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from adatsq_pipe.stages.scenes.world import captions
from adatsq_pipe.stages.scenes.world.captions import Request


@pytest.mark.parametrize(
    ("caption", "request_"),
    [
        ("a circle", Request(task="single", things=(("", "circle"),))),
        ("a circle and a square", Request(task="two", things=(("", "circle"), ("", "square")))),
        ("three green crosses", Request(task="counting", things=(("green", "cross"),), count=3)),
        ("A Red  circle.", Request(task="colours", things=(("red", "circle"),))),
        (
            "a red circle left of a blue square",
            Request(task="position", things=(("red", "circle"), ("blue", "square")), relation="left of"),
        ),
        (
            "a white cross and a purple triangle",
            Request(task="attribution", things=(("white", "cross"), ("purple", "triangle"))),
        ),
    ],
)
def test_a_caption_means_its_request(caption: str, request_: Request) -> None:
    assert captions.parse(caption) == request_


def test_every_request_has_a_caption_of_its_own() -> None:
    coloured, pairs = 6 * 4, 24 * 23
    counts = Counter(request.task for request in captions.ALL_REQUESTS)
    assert counts == {
        "single": 4,
        "two": 12,
        "counting": 3 * coloured,
        "colours": coloured,
        "position": 4 * pairs,
        "attribution": pairs,
    }
    assert all(captions.parse(request.caption) == request for request in captions.ALL_REQUESTS)
    words = {word for request in captions.ALL_REQUESTS for word in request.caption.split()}
    assert words == set(captions.WORDS) and len(captions.WORDS) == len(words)


def test_captions_outside_the_grammar_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="do not come in that order"):
        captions.parse("circle a red")
    with pytest.raises(ValueError, match="no word 'dog'"):
        captions.parse("a red dog")
    with pytest.raises(ValueError, match="do not come in that order"):
        captions.parse("a red circle left of a red circle")


def test_the_split_is_one_byte_of_the_combinations_hash() -> None:
    pair = (("red", "circle"), ("blue", "square"))
    keys = {
        "a red circle left of a blue square": "1:blue square|red circle",
        "a blue square and a red circle": "1:blue square|red circle",
        "three green crosses": "3:green cross",
        "a green cross": "1:green cross",
    }
    for caption, key in keys.items():
        request = captions.parse(caption)
        assert request.combination == key
        assert captions.is_held_out(request) is (hashlib.sha256(key.encode()).digest()[0] % 8 == 0)
    wordings = [Request(task="", things=order, relation=r) for order in (pair, pair[::-1]) for r in captions.RELATIONS]
    assert len({captions.is_held_out(request) for request in wordings}) == 1


def test_about_one_combination_in_eight_is_held_out() -> None:
    combinations = {request.combination for request in captions.ALL_REQUESTS if request.things[0][0]}
    share = np.mean([captions.is_held_out_combination(combination) for combination in combinations])
    assert abs(share - 1 / 8) < 3 * np.sqrt(1 / 8 * 7 / 8 / len(combinations))


def test_training_never_draws_a_held_out_combination() -> None:
    rng = np.random.default_rng(0)
    lists = (
        captions.requests(3000, split="train", seed=1),
        [captions.draw_request(rng, split="train") for _ in range(3000)],
    )
    for requests in lists:
        coloured = [request for request in requests if request.task not in ("single", "two")]
        assert len(coloured) > 1500
        assert not any(captions.is_held_out(request) for request in coloured)


def test_evaluation_asks_only_for_held_out_combinations() -> None:
    requests = captions.requests(600, split="held_out", seed=1)
    assert all(captions.is_held_out(request) for request in requests if request.task not in ("single", "two"))
    assert {request.caption for request in requests if request.task == "single"} == {
        "a circle",
        "a square",
        "a triangle",
        "a cross",
    }


def test_lists_take_the_six_tasks_in_turn_and_do_not_repeat_themselves() -> None:
    requests = captions.requests(48, split="train", seed=3)
    assert [request.task for request in requests] == list(captions.TASKS) * 8
    attributions = [request for request in requests if request.task == "attribution"]
    assert len(set(attributions)) == 8
    singles = [request for request in requests if request.task == "single"]
    assert singles[:4] == singles[4:] and len(set(singles)) == 4


def test_a_longer_list_begins_with_the_shorter() -> None:
    assert captions.requests(30, split="held_out", seed=2)[:10] == captions.requests(10, split="held_out", seed=2)
    assert captions.requests(30, split="held_out", seed=2) != captions.requests(30, split="held_out", seed=3)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'test'"):
        captions.requests(1, split="test", seed=0)


def test_training_draws_each_task_as_often_as_it_should() -> None:
    rng = np.random.default_rng(5)
    counts = Counter(captions.draw_request(rng, split="train").task for _ in range(6000))
    shares = {"single": 0.03, "two": 0.24, "counting": 0.19, "colours": 0.04, "position": 0.14, "attribution": 0.36}
    for task, share in shares.items():
        assert abs(counts[task] / 6000 - share) < 4 * np.sqrt(share * (1 - share) / 6000), task


def test_class_labels_count_shapes_within_colours() -> None:
    assert captions.class_request(0).caption == "a red circle"
    assert captions.class_request(5).caption == "a green square"
    assert captions.class_request(23).caption == "a white cross"
    for label in (-1, 24):
        with pytest.raises(ValueError, match="0 to 23"):
            captions.class_request(label)
