"""Costs and rows of the Lagrangian allocation, from effects written by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from adatsq_pipe.stages.allocation.lagrangian import Costs, coherence, pooled
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
    """Effects in units of what rounding every place to 4 bits comes to for the caption: signs count within a layer."""
    four = activations[..., WIDTHS.index(4)]
    whole = [math.sqrt(sum(float(p) ** 2 for p in sum(caption))) for caption in four]
    return activations / np.array(whole)[:, None, None, None]


def _square(effects: np.ndarray) -> float:
    return math.pi / 2 * float(np.mean([abs(p) for p in effects])) ** 2


def _costs(activations: np.ndarray, layers: tuple[int, ...] = (0, 1)) -> dict[tuple[int, int, int], float]:
    """What rounding costs by (step, layer, width), with sums written out."""
    alike, steps = _alike(activations), range(activations.shape[1])
    own = {(t, i, b): _square(alike[:, t, i, k]) for t in steps for i in layers for k, b in enumerate(WIDTHS)}
    place = {(t, i): math.prod(own[t, i, b] for b in WIDTHS) ** (1 / 6) for t in steps for i in layers}
    costs = {}
    for k, b in enumerate(WIDTHS):
        ratios = [_square(sum(alike[:, t, i, k] for t in steps)) / sum(own[t, i, b] for t in steps) for i in layers]
        together = math.prod(ratios) ** (1 / len(layers))
        for i in layers:
            width = math.prod(own[t, i, b] / place[t, i] for t in steps) ** (1 / len(steps))
            for t in steps:
                costs[t, i, b] = math.sqrt(own[t, i, b] * place[t, i] * width) * together
    return costs


def test_costs_rest_on_all_widths_and_on_how_a_layer_s_effects_add_up_over_steps(tmp_path: Path) -> None:
    store, activations = _store(tmp_path)
    rounded = [[0, 1]] * store.steps
    costs = Costs(store.context, survey_of(store.context), rounded, (3, 4, 8))
    own = _costs(activations)
    wanted = [[own[t, i, b] for b in (3, 4, 8)] for t in range(store.steps) for i in (0, 1)]
    np.testing.assert_allclose(costs.cost_NW, wanted, rtol=1e-5)
    assert costs.rows([0, 1, 2, 0, 1, 2]) == ((3, 4), (8, 3), (4, 8))


def test_effects_of_one_sign_over_steps_cost_as_many_times_more_as_there_are_steps() -> None:
    random = np.random.default_rng(0)
    effects = np.repeat(random.normal(size=(4000, 1, 2, 3)), 5, axis=1)
    effects[..., 1] = random.normal(size=(4000, 5, 2))
    np.testing.assert_allclose(coherence(effects), [5, 1, 5], rtol=0.05)


def test_places_without_any_effect_cost_nothing_to_speak_of() -> None:
    cost = np.array([[4.0, 1.0, 0.1], [0.0, 0.0, 0.0]])
    got = pooled(cost, np.array([0, 1]))
    np.testing.assert_allclose(got[0], cost[0])
    assert got[1].max() < 1e-15 and not pooled(0 * cost, np.array([0, 1])).any()
    assert (coherence(np.zeros((2, 3, 1, 4))) == 1).all()


def test_the_predicted_error_adds_a_layer_s_effects_with_their_signs_and_squares_of_layers(tmp_path: Path) -> None:
    store, activations = _store(tmp_path)
    costs = Costs(store.context, survey_of(store.context), [[0, 1]] * store.steps, (3, 4, 8))
    by_layer = {0: (3, 8, 4), 1: (4, 3, 8)}
    errors = [
        sum(sum(caption[t, i, WIDTHS.index(b)] for t, b in enumerate(by_layer[i])) ** 2 for i in (0, 1)) / 50
        for caption in activations
    ]
    wanted = math.prod(errors) ** (1 / len(errors))
    assert costs.predicted([0, 1, 2, 0, 1, 2]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("multiplier", [3e-4, 1e-3, 5e-3])
def test_the_policy_is_the_best_of_all_within_the_budget(tmp_path: Path, multiplier: float) -> None:
    """At a budget that the allocations of least cost + multiplier x bits reach; between those a budget is filled."""
    _, activations = _store(tmp_path)
    own = _costs(activations)
    cost = [[own[t, i, b] for b in (3, 4, 8)] for t in range(3) for i in range(2)]
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
    policy = [b for row in space.policies[0] for b in row]
    got = sum(cost[n][(3, 4, 8).index(b)] for n, b in enumerate(policy))
    assert sum(policy) / 6 <= budget + 1e-9 and got == pytest.approx(min(everything), rel=1e-5)
    assert space.even == [(0, 0, 0)] and space.policy((0, 0, 0)).bits[0][2] == WEIGHT_ONLY


def test_a_budget_of_macs_counts_bits_by_multiply_accumulates(tmp_path: Path) -> None:
    store, _ = _store(tmp_path, budget=4.0, price="macs")
    space = Trellis(store.context)
    macs = [TOKENS * SHAPES[name][0] * SHAPES[name][1] for name in (FIRST, SECOND)]
    rows = space.policies[0]
    spent = sum(b * m for row in rows for b, m in zip(row, macs, strict=True)) / (3 * sum(macs))
    assert space.costs is not None
    np.testing.assert_allclose(space.costs.walk("macs").price_N, [m / (sum(macs) / 2) for m in macs] * 3)
    np.testing.assert_array_equal(space.costs.walk("bits").price_N, np.ones(6))
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
    own = _costs(_store(tmp_path / "2")[1])
    costs = [sum(own[n // 2, n % 2, b] for n, b in enumerate(row["bits"])) for row in rows]
    assert costs == sorted(costs, reverse=True)
    assert rows[-1]["predicted_error"] < rows[0]["predicted_error"] / 100


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
