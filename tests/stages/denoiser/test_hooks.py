"""Listening to linear layers: which tensor each is fed, what of it is kept, and what a survey says of a layer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adatsq_pipe.stages.base.survey import CallSurvey
from adatsq_pipe.stages.denoiser.hooks import InputRecorder, RowSampler, equalize, listen, survey


def _linears(**widths: tuple[int, int]) -> dict[str, nn.Linear]:
    return {name: nn.Linear(*sizes) for name, sizes in widths.items()}


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _sampled(x: Tensor, count: int, seed: tuple[int, ...] = (1, 2)) -> RowSampler:
    """A sampler that has seen `x` go into the layer "one"."""
    layers = _linears(one=(x.shape[-1], 3))
    sampler = RowSampler(layers, count, seed)
    listen(lambda: layers["one"](x), sampler)
    return sampler


def _places(rows: Tensor, x: Tensor) -> list[int]:
    """Where each of the rows stands among the tokens of `x`, whose tokens all differ."""
    tokens = [tuple(token.tolist()) for token in x.flatten(0, -2)]
    assert len(set(tokens)) == len(tokens)
    return [tokens.index(tuple(row.tolist())) for row in rows]


@pytest.mark.parametrize("shape", [(40, 6), (4, 10, 6), (2, 4, 5, 6)])
def test_kept_rows_are_different_tokens_of_the_input_as_many_as_asked_for(shape: tuple[int, ...]) -> None:
    x = _drawn(*shape)
    places = _places(_sampled(x, 12).rows["one"], x)
    assert len(places) == len(set(places)) == 12


def test_all_tokens_are_kept_where_there_are_no_more_than_asked_for() -> None:
    x = _drawn(2, 3, 6)
    for count in (6, 7, 100):
        assert sorted(_places(_sampled(x, count).rows["one"], x)) == list(range(6))


def test_tokens_are_chosen_all_over_the_input_and_by_the_seed() -> None:
    x = _drawn(4, 100, 6)
    chosen = [_places(_sampled(x, 40, (0, seed)).rows["one"], x) for seed in range(20)]
    assert chosen[0] == _places(_sampled(x, 40, (0, 0)).rows["one"], x)
    assert len({tuple(places) for places in chosen}) == 20
    per_sample = np.bincount([place // 100 for places in chosen for place in places], minlength=4)
    assert (abs(per_sample - 200) < 60).all(), "800 of 1600 tokens, of four samples evenly: five standard deviations"


def test_peaks_are_the_largest_absolute_values_of_all_tokens_also_where_those_are_negative() -> None:
    x = _drawn(4, 10, 6)
    x[3, 9, 0], x[0, 0, 1], x[2, 2, 2] = -50.0, 60.0, -0.5
    peaks = _sampled(x, 2).peaks["one"]
    for channel in range(6):
        assert peaks[channel].item() == max(abs(value) for value in x[..., channel].flatten().tolist())
    assert peaks[:2].tolist() == [50.0, 60.0]


def test_layers_fed_the_same_tensor_have_one_owner_and_those_fed_an_equal_one_do_not() -> None:
    layers, x = _linears(query=(6, 3), key=(6, 4), value=(6, 5), other=(6, 3)), _drawn(8, 6)

    def forward() -> None:
        for name in ("query", "key", "value"):
            layers[name](x)
        layers["other"](x.clone())

    sampler = RowSampler(layers, 4, (0,))
    listen(forward, sampler)
    assert sampler.source == {"query": "query", "key": "query", "value": "query", "other": "other"}
    assert set(sampler.rows) == set(sampler.peaks) == {"query", "other"}
    rows, peak = sampler.of("value", layers["value"])
    assert torch.equal(rows, sampler.rows["query"]) and torch.equal(peak, x.abs().amax(0))


def test_a_layer_that_was_not_reached_has_one_row_of_zeros() -> None:
    layers = _linears(one=(6, 3), idle=(4, 2), empty=(5, 2))

    def forward() -> None:
        layers["one"](_drawn(8, 6))
        layers["empty"](torch.zeros(0, 5))

    sampler = RowSampler(layers, 4, (0,))
    listen(forward, sampler)
    for name, width in (("idle", 4), ("empty", 5)):
        rows, peak = sampler.of(name, layers[name])
        assert rows.tolist() == [[0.0] * width] and peak.tolist() == [0.0] * width


def test_after_listening_layers_are_not_listened_to_even_if_the_call_fails() -> None:
    layers = _linears(one=(6, 3))

    def fails() -> None:
        layers["one"](_drawn(8, 6))
        raise KeyError("the call")

    for forward in (lambda: layers["one"](_drawn(8, 6)), fails):
        listener = InputRecorder(layers)
        with suppress(KeyError):
            listen(forward, listener)
        assert list(listener.inputs) == ["one"] and not listener.repeated
        layers["one"](_drawn(8, 6))
        assert not listener.repeated, "a second run of the layer is not seen"


def _surveyed(forward: Callable[[dict[str, nn.Linear]], object], samples: Fraction | int) -> CallSurvey:
    layers = _linears(wide=(6, 3), narrow=(3, 5), vector=(4, 2), twice=(6, 6), idle=(2, 2))
    return survey(lambda: forward(layers), layers, samples)


def test_a_survey_counts_multiply_accumulates_of_one_sample_and_tells_vectors_from_tokens() -> None:
    def forward(layers: dict[str, nn.Linear]) -> None:
        layers["vector"](_drawn(2, 4))
        hidden = layers["wide"](_drawn(2, 7, 6))
        layers["narrow"](hidden)
        layers["twice"](layers["twice"](_drawn(2, 7, 6)))

    seen = _surveyed(forward, 2)
    assert [layer.plain() for layer in seen.layers] == [
        {"name": "vector", "in": 4, "out": 2, "kind": "conditioning", "source": "vector", "macs": 1 * 4 * 2},
        {"name": "wide", "in": 6, "out": 3, "kind": "tokens", "source": "wide", "macs": 7 * 6 * 3},
        {"name": "narrow", "in": 3, "out": 5, "kind": "tokens", "source": "narrow", "macs": 7 * 3 * 5},
    ]
    assert (seen.unused, seen.repeated) == (("idle",), ("twice",))


def test_a_layer_that_stored_the_input_of_others_but_ran_twice_hands_it_to_the_next() -> None:
    def forward(layers: dict[str, nn.Linear]) -> None:
        x = _drawn(2, 7, 6)
        layers["twice"](x)
        layers["wide"](x)
        layers["twice"](x)

    found = _surveyed(forward, 2)
    assert [layer.input_of for layer in found.layers] == ["wide"]
    assert found.repeated == ("twice",)


@pytest.mark.parametrize(
    ("shape", "samples", "kind"),
    [
        ((2, 4), 2, "conditioning"),
        ((8, 4), 2, "conditioning"),
        ((9, 4), 2, "tokens"),
        ((4,), 1, "conditioning"),
        ((2, 1, 4), 2, "tokens"),
        ((2, 4), Fraction(1, 2), "conditioning"),
        ((3, 4), Fraction(1, 2), "tokens"),
    ],
)
def test_conditioning_is_one_vector_for_each_of_at_most_four_guided_variants_of_a_sample(
    shape: tuple[int, ...], samples: Fraction | int, kind: str
) -> None:
    found = _surveyed(lambda layers: layers["vector"](_drawn(*shape)), samples)
    assert [layer.role for layer in found.layers] == [kind]


def test_rows_of_several_calls_are_repeated_in_turn_up_to_the_most_of_any_call() -> None:
    rows = [_drawn(5, 2, seed=1), _drawn(2, 2, seed=2), _drawn(1, 2, seed=3), _drawn(3, 2, seed=4)]
    found = equalize(rows)
    assert [len(x) for x in found] == [5, 5, 5, 5]
    for x, of in zip(found, rows, strict=True):
        assert torch.equal(x, torch.stack([of[place % len(of)] for place in range(5)]))
