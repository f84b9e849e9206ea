"""Text encoders: labels of words and captions by hand, and states that do not see padding."""

from __future__ import annotations

import torch

from adatsq_pipe.stages.scenes.train import components, text_encoder, wan
from adatsq_pipe.stages.scenes.world import captions

COLOUR_RED, COLOUR_OPEN, NONE = 0, 6, -100


def test_a_word_becomes_the_token_of_its_place_in_the_vocabulary() -> None:
    """Four special tokens come first: padding 0, unknown 1, beginning 2, end 3."""
    red_circle = [4, 4 + captions.WORDS.index("red"), 4 + captions.WORDS.index("circle"), 3]
    assert components.ids(["a red circle"]).tolist() == [[*red_circle, *[0] * 8]]
    words = components.tokenizer()
    assert 1 in words("a pink elephant").input_ids
    assert 1 not in words("four yellow triangles").input_ids


def test_the_longest_captions_fit() -> None:
    words = components.tokenizer()
    assert max(len(words(request.caption).input_ids) for request in captions.ALL_REQUESTS) <= components.TEXT_LENGTH


def test_labels_name_the_thing_that_each_word_belongs_to() -> None:
    request = captions.Request(task="", things=(("red", "circle"), ("", "square")), relation="left of")
    ids, of_words, of_caption = text_encoder.labels([request], 12)
    assert ids.shape == (1, 12)
    assert of_words["colour"][0, :8].tolist() == [COLOUR_RED] * 5 + [COLOUR_OPEN] * 2 + [NONE]
    assert of_words["place"][0, :7].tolist() == [text_encoder.PLACES.index("left of")] * 5 + [3] * 2
    assert of_words["first"][0, :7].tolist() == [1] * 5 + [0] * 2
    assert of_caption["shape0"].item() == 0 and of_caption["shape1"].item() == 1
    assert of_caption["count0"].item() == 1 and of_caption["colour1"].item() == COLOUR_OPEN


def test_a_causal_encoder_labels_the_last_word_of_each_thing() -> None:
    request = captions.parse("a red circle left of a blue square")
    of_words = text_encoder.labels([request], 12, last_words_only=True)[1]
    assert of_words["colour"][0].tolist() == [*[NONE] * 4, COLOUR_RED, NONE, NONE, 2, *[NONE] * 4]


def test_a_caption_of_one_thing_has_no_second() -> None:
    of_caption = text_encoder.labels([captions.parse("four green crosses")], 12)[2]
    assert of_caption["count0"].item() == 4
    assert of_caption["shape1"].item() == len(captions.SHAPES), "one more class: no thing"


def test_the_state_of_a_motions_word_ignores_padding_and_is_zero_in_it() -> None:
    torch.manual_seed(0)
    encoder = wan.MotionTextEncoder().eval()
    ids = wan.token_ids(["a red circle moving left fast"])
    with torch.no_grad():
        states, longer = encoder.states(ids), encoder.states(torch.nn.functional.pad(ids, (0, 5)))
    assert states[0, :7].abs().amax(-1).min() > 0 and not states[0, 7:].any()
    torch.testing.assert_close(longer[:, :12], states, rtol=1e-4, atol=1e-5)


def test_the_pooled_state_of_a_causal_encoder_is_the_one_at_the_end() -> None:
    torch.manual_seed(0)
    encoder = text_encoder.CausalTextEncoder().eval()
    ids = components.ids(["a red circle", "a red circle left of a blue square"])
    with torch.no_grad():
        states = encoder.states(ids)
    assert torch.equal(encoder.pooled(ids, states), torch.stack([states[0, 3], states[1, 8]]))
