"""The trellis: bits of every candidate, prices, whole rows and means, against explicit sums over (step, layer)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from adatsq_pipe.stages.allocation.trellis import SearchSettings, Trellis
from adatsq_pipe.stages.numerics.policy import bits_by_fisher
from tests.support.made_context import FIRST, MODULATION, SECOND
from tests.support.made_store import MadeStore, make_store

CANDIDATES = ((0.0, 0.0), (1.0, 1.0), (2.0, 0.0))
MACS = {FIRST: 5 * 24 * 16, SECOND: 5 * 8 * 16, MODULATION: 8 * 16}
"""Multiply-accumulates of one sample; the modulation sees one vector, the others five tokens."""


def _store(folder: Path) -> MadeStore:
    """Scores that differ by step and layer; the layer without activation bits has by far the largest."""
    store = make_store(folder, search={"candidates": CANDIDATES, "budget": 4.5})
    one = torch.tensor([[9.0, 1.0, 1e6], [2.0, 0.5, 1e6], [0.1, 3.0, 1e6]], dtype=torch.float64)
    other = torch.tensor([[1.0, 5.0, 1e6], [0.0, 0.5, 1e6], [0.1, 1.0, 1e6]], dtype=torch.float64)
    store.scores = torch.stack([one, other])
    store.write_scores()
    return store


def _in_parts(store: MadeStore) -> None:
    """One denoiser with two layers at step 0, another with one layer at steps 1 and 2; all have activation bits."""
    parts = {FIRST: "early", SECOND: "early", MODULATION: "late"}
    rows = [{**store.row(name), "kind": "tokens", "part": parts[name]} for name in store.names]
    store.write_survey(layers=rows, parts={"early": [0], "late": [1, 2]})


def test_candidates_follow_the_mean_scores_of_the_layers_that_are_rounded(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.write_survey()
    scores = [[5.0, 3.0], [1.0, 0.5], [0.1, 2.0]]
    found = Trellis(store.context)
    assert found.rounded == [[0, 1]] * 3
    assert found.policies == [bits_by_fisher(scores, (3, 4, 8), 4.5, candidate) for candidate in CANDIDATES]
    assert found.policies == [((4, 4), (4, 4), (4, 4)), ((8, 4), (4, 4), (3, 4)), ((4, 4), (4, 4), (3, 8))]


def test_a_step_s_price_is_its_share_of_the_mean_bits(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.write_survey()
    found = Trellis(store.context)
    for step, row in enumerate(found.prices):
        assert row == pytest.approx([sum(policy[step]) / 2 for policy in found.policies])
    assert len(found.prices) == 3 and found.beam().prices == found.prices
    assert (found.beam().budget, found.beam().width) == (4.5, 2)


def test_prices_of_steps_with_different_layers_add_up_to_the_mean(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _in_parts(store)
    found = Trellis(store.context)
    assert found.rounded == [[0, 1], [2], [2]]
    assert [len(row) for row in found.policies[0]] == [2, 1, 1]
    for choices in ((0, 1, 2), (2, 2, 0), (1, 0, 1)):
        bits = [b for t, c in enumerate(choices) for b in found.policies[c][t]]
        price = sum(found.prices[t][c] for t, c in enumerate(choices)) / 3
        assert price == pytest.approx(sum(bits) / 4), "four pairs of step and layer"
        assert found.mean_bits(choices) == pytest.approx(sum(bits) / 4)


def test_a_whole_row_has_16_where_a_layer_is_weight_only_or_not_used(tmp_path: Path) -> None:
    store = _store(tmp_path / "one")
    store.write_survey()
    found = Trellis(store.context)
    assert found.whole_row(1, (3, 8)) == (3, 8, 16)
    assert found.policy((0, 1, 2)).bits == tuple((*found.policies[c][t], 16) for t, c in enumerate((0, 1, 2)))
    assert found.even == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    parts = _store(tmp_path / "two")
    _in_parts(parts)
    found = Trellis(parts.context)
    assert found.whole_row(0, (4, 8)) == (4, 8, 16)
    assert found.whole_row(2, (3,)) == (16, 16, 3)


@pytest.mark.parametrize("parts", [False, True])
def test_the_weighted_mean_counts_every_layer_by_its_multiply_accumulates(parts: bool, tmp_path: Path) -> None:
    store = _store(tmp_path)
    if parts:
        _in_parts(store)
    else:
        store.write_survey()
    found, choices = Trellis(store.context), (1, 0, 2)
    used = [(FIRST, SECOND), (MODULATION,), (MODULATION,)] if parts else [(FIRST, SECOND)] * 3
    pairs = [
        (bits, MACS[name])
        for t, c in enumerate(choices)
        for bits, name in zip(found.policies[c][t], used[t], strict=True)
    ]
    wanted = sum(bits * macs for bits, macs in pairs) / sum(macs for _, macs in pairs)
    assert found.mac_weighted_bits(choices) == pytest.approx(wanted, rel=1e-12)
    assert abs(wanted - found.mean_bits(choices)) > 0.01, "the plain mean is another number"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": (4, 3, 8)}, r"bits must rise and lie in 2\.\.8, not \[4, 3, 8\]"),
        ({"bits": (3, 3)}, r"bits must rise"),
        ({"bits": (1, 4)}, r"lie in 2\.\.8"),
        ({"bits": (4, 9)}, r"lie in 2\.\.8"),
        (
            {"bits": (3, 4, 8), "budget": 2.9},
            r"a budget of 2\.9 mean bits cannot be met: the fewest of search\.bits \[3, 4, 8\] is 3",
        ),
        ({"candidates": ((0.0, -0.1),)}, r"candidate \[0\.0, -0\.1\] must be two numbers of at least 0"),
        ({"candidates": ((-0.1, 0.0),)}, r"must be two numbers of at least 0"),
        ({"width": 0}, r"width"),
        ({"rollout_prompts": 0}, r"rollout_prompts"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchSettings(**changes)


def test_a_budget_of_the_fewest_bits_is_possible() -> None:
    assert SearchSettings(budget=3.0).budget == 3.0
