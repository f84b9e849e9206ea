"""Costs and rows of the Lagrangian allocation, from effects written by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from adatsq_pipe.stages.allocation.lagrangian import Costs
from adatsq_pipe.stages.allocation.search import STAGE
from adatsq_pipe.stages.allocation.trellis import SearchSettings, Trellis, widths_of
from adatsq_pipe.stages.calibration.effects import WIDTHS
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY
from tests.support.made_context import FIRST, SECOND, SHAPES, TOKENS, made_context
from tests.support.made_store import MadeStore, make_store


def _store(folder: Path, obstacle: str = "", **search: object) -> tuple[MadeStore, np.ndarray]:
    store = make_store(folder, recipe={"method": "endpoint", "conditioning_group": 0}, search=search)
    store.write_survey()
    activations, _ = store.write_effects(obstacle)
    store.write_scores()
    return store, activations.double().numpy()


def _alike(activations: np.ndarray) -> np.ndarray:
    """Effects in units of what rounding every place to 4 bits comes to for the caption."""
    whole = [math.sqrt(sum(p**2 for p in caption[..., WIDTHS.index(4)].ravel())) for caption in activations]
    return activations / np.array(whole)[:, None, None, None]


def test_costs_are_expected_squares_of_captions_that_count_alike(tmp_path: Path) -> None:
    store, activations = _store(tmp_path)
    rounded = [[0, 1]] * store.steps
    costs = Costs(store.context, survey_of(store.context), rounded, (3, 4, 8))
    places = [(t, i) for t in range(store.steps) for i in (0, 1)]
    wanted = [
        [math.pi / 2 * np.abs(_alike(activations)[:, t, i, WIDTHS.index(b)]).mean() ** 2 for b in (3, 4, 8)]
        for t, i in places
    ]
    np.testing.assert_allclose(costs.cost_NW, wanted, rtol=1e-5)
    assert costs.rows([0, 1, 2, 0, 1, 2]) == ((3, 4), (8, 3), (4, 8))


def test_the_predicted_error_is_the_geometric_mean_over_captions_of_summed_squares(tmp_path: Path) -> None:
    store, activations = _store(tmp_path)
    costs = Costs(store.context, survey_of(store.context), [[0, 1]] * store.steps, (3, 4, 8))
    bits = (3, 4, 8, 3, 4, 8)
    places = [(t, i) for t in range(store.steps) for i in (0, 1)]
    errors = [
        sum(caption[t, i, WIDTHS.index(b)] ** 2 for (t, i), b in zip(places, bits, strict=True)) / 50
        for caption in activations
    ]
    wanted = math.prod(errors) ** (1 / len(errors))
    assert costs.predicted([0, 1, 2, 0, 1, 2]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("multiplier", [3e-4, 1e-3, 5e-3])
def test_the_policy_is_the_best_of_all_within_the_budget(tmp_path: Path, multiplier: float) -> None:
    """At a budget that the allocations of least cost + multiplier x bits reach; between those a budget is filled."""
    _, activations = _store(tmp_path)
    squares = math.pi / 2 * np.abs(_alike(activations)[:, :, :2]).mean(0) ** 2
    cost = [[squares[t, i, WIDTHS.index(b)] for b in (3, 4, 8)] for t in range(3) for i in range(2)]
    corner = [min((3, 4, 8), key=lambda b: row[(3, 4, 8).index(b)] + multiplier * b) for row in cost]
    budget = sum(corner) / 6
    everything = [
        sum(cost[n][k] for n, k in enumerate(choice))
        for choice in itertools.product(range(3), repeat=6)
        if sum((3, 4, 8)[k] for k in choice) / 6 <= budget + 1e-9
    ]
    chosen = make_store(
        tmp_path / "2", recipe={"method": "endpoint"}, search={"bits": (3, 4, 8), "budget": max(3.0, budget)}
    )
    chosen.write_survey()
    chosen.write_effects()
    space = Trellis(chosen.context)
    own = [b for row in space.policies[0] for b in row]
    got = sum(cost[n][(3, 4, 8).index(b)] for n, b in enumerate(own))
    assert sum(own) / 6 <= budget + 1e-9 and got == pytest.approx(min(everything), rel=1e-5)
    assert space.even == [(0, 0, 0)] and space.policy((0, 0, 0)).bits[0][2] == WEIGHT_ONLY


def test_a_budget_of_macs_counts_bits_by_multiply_accumulates(tmp_path: Path) -> None:
    store, _ = _store(tmp_path, budget=4.0, price="macs")
    space = Trellis(store.context)
    macs = [TOKENS * SHAPES[name][0] * SHAPES[name][1] for name in (FIRST, SECOND)]
    rows = space.policies[0]
    spent = sum(b * m for row in rows for b, m in zip(row, macs, strict=True)) / (3 * sum(macs))
    assert spent <= 4.0 + 1e-9 and space.mac_weighted_bits((0, 0, 0)) == pytest.approx(spent)
    assert sum(prices[0] for prices in space.prices) / 3 == pytest.approx(spent), "the beam pays the same price"
    plain = sum(map(sum, rows)) / 6
    assert space.mean_bits((0, 0, 0)) == pytest.approx(plain) and abs(plain - spent) > 0.01


def test_the_front_holds_an_allocation_for_every_tenth_of_a_bit_and_more_bits_cost_less(tmp_path: Path) -> None:
    store, _ = _store(tmp_path)
    rows = Trellis(store.context).all_budgets()
    assert len(rows) == 51, "3.0 to 8.0"
    for tenths, row in zip(range(30, 81), rows, strict=True):
        assert row["mean_bits"] == pytest.approx(sum(row["bits"]) / 6) and row["mean_bits"] <= tenths / 10 + 1e-9
    errors = [row["predicted_error"] for row in rows]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 100


def test_the_beam_s_candidates_are_the_allocation_and_rows_of_more_and_fewer_bits(tmp_path: Path) -> None:
    store, _ = _store(tmp_path, budget=4.5, beam=True)
    space = Trellis(store.context)
    own, more, fewer = (sum(map(sum, policy)) for policy in space.policies)
    assert fewer < own < more and space.even == [(0, 0, 0)], "only the allocation itself keeps the budget for sure"


def test_without_end_to_end_effects_per_step_scores_decide(tmp_path: Path) -> None:
    store, _ = _store(tmp_path, obstacle="RuntimeError: numpy")
    space = Trellis(store.context)
    scores = store.scores.mean(0).numpy()
    wanted = []
    for t in range(3):
        mean = scores[t, :2].mean()
        wanted += [mean**0.125 * (scores[t, i] / mean) ** 0.25 for i in range(2)]
    assert space.costs is not None and space.costs.predicted([0] * 6) is None
    ratio = space.costs.cost_NW / np.array([1 / (2**b - 1) ** 2 for b in (3, 4, 5, 6, 8)])
    np.testing.assert_allclose(ratio, np.array(wanted)[:, None] * np.ones(5), rtol=1e-6)


def test_widths_follow_the_recipe_and_the_budget() -> None:
    assert widths_of(SearchSettings(), "trellis") == (3, 4, 8)
    assert widths_of(SearchSettings(budget=3.5), "lagrangian") == (3, 4, 5, 6, 8)
    assert widths_of(SearchSettings(budget=3.4), "lagrangian") == (2, 3, 4, 5, 6, 8)
    assert widths_of(SearchSettings(bits=(4, 8)), "lagrangian") == (4, 8)


def test_a_search_depends_on_the_widths_that_it_chooses_from_not_on_who_named_them() -> None:
    def reads(**search: object) -> object:
        context = made_context(Path("run"), Path("model"), recipe={"method": "endpoint"}, search=search)
        return STAGE.reads(context.settings, "digest")

    assert reads(budget=4.0) == reads(budget=4.0, bits=(3, 4, 5, 6, 8))
    assert reads(budget=4.0) != reads(budget=4.0, bits=(2, 3, 4, 5, 6, 8))
