"""Solve: smoothing, and rotations that it rests on, against loops over steps and channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adatsq_pipe.stages.weights.solve_worker import Solve
from tests.support import slow_math
from tests.support.made_context import FIRST, SECOND
from tests.support.made_store import MadeStore
from tests.support.solved_layers import assert_nearest, layer_unit, smooth_of, solved


@pytest.mark.parametrize("over", ["all", "noisiest", "salience"])
def test_smoothing_takes_peaks_over_the_steps_that_the_recipe_names(
    over: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = pytest.importorskip("scipy.stats")
    recipe = {"method": "smoothquant", "smoothing_over": over, "smoothing_alpha": 0.75}
    store, _ = solved(tmp_path, monkeypatch, recipe)
    marker, stored = layer_unit(store)
    w, steps = store.weights[FIRST], store.peaks[FIRST].amax(0)
    if over == "salience":
        rho = np.array([stats.spearmanr(peaks, w.abs().amax(0)).statistic for peaks in steps])
        peaks = torch.from_numpy(np.exp(-rho) / np.exp(-rho).sum() @ steps.double().numpy())
    else:
        peaks = steps[0] if over == "noisiest" else steps.amax(0)
    smooth = smooth_of(peaks, w, 0.75)
    assert torch.equal(stored["smooth"].double(), smooth)
    scaled = (w.double() / smooth).float()
    held = assert_nearest(stored, scaled, 4)
    gram = store.grams[FIRST].double() * smooth * smooth.unsqueeze(1)
    assert marker.value["error"] == pytest.approx(slow_math.error(scaled, held, gram), rel=1e-5)
    assert marker.value["smoothing"] == "on the fly" and marker.value["spec"]["smoothed"]


def test_channels_in_another_order_keep_their_own_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = solved(tmp_path, monkeypatch, {"method": "smoothquant", "permuted": True})
    _, stored = layer_unit(store)
    order = stored["order"].long()
    smooth = smooth_of(store.peaks[FIRST].amax((0, 1)), store.weights[FIRST], 0.5)
    assert torch.equal(stored["smooth"].double(), smooth[order])
    assert_nearest(stored, (store.weights[FIRST].double() / smooth)[:, order].float(), 4)


def test_a_layer_that_smoothing_skips_keeps_its_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"method": "smoothquant", "smoothing_skip": ["second"]}
    store, _ = solved(tmp_path, monkeypatch, recipe, (FIRST, SECOND))
    marker, stored = layer_unit(store, SECOND)
    assert_nearest(stored, store.weights[SECOND], 4)
    assert "smooth" not in stored and marker.value["smoothing"] == "none"
    assert "smooth" in layer_unit(store, FIRST)[1]


def test_of_several_exponents_the_one_of_least_error_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = solved(tmp_path, monkeypatch, {"method": "smoothquant", "smoothing_grid": 4, "weight_bits": 3})
    marker, stored = layer_unit(store)
    w, peaks, errors, smooths = store.weights[FIRST], store.peaks[FIRST].amax((0, 1)), [], []
    for alpha in (0, 1 / 3, 2 / 3, 1):
        smooth = smooth_of(peaks, w, alpha)
        scaled = (w.double() / smooth).float()
        scale, zero = slow_math.grid(scaled, 3)
        held = slow_math.values(slow_math.codes_of(scaled, scale, zero, 3), scale, zero)
        errors.append(slow_math.error(w, held * smooth, store.grams[FIRST]))
        smooths.append(smooth)
    best = errors.index(min(errors))
    assert 0 < best < 3 and max(errors) > 1.1 * min(errors)
    assert torch.equal(stored["smooth"].double(), smooths[best])
    assert marker.value["error"] == pytest.approx(errors[best], rel=1e-4)


def test_a_layer_is_smoothed_alike_at_all_weight_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sensitivities are measured with the exponent that the recipe's bits choose, before it has its own."""
    recipe, whole = {"method": "smoothquant", "smoothing_grid": 33, "conditioning_bits": 8}, Solve._spec
    chosen = []
    for bits, own in ((2, 2), (2, 8), (8, 8)):
        monkeypatch.setattr(Solve, "_spec", lambda self, row, own=own: replace(whole(self, row), weight_bits=own))
        store, _ = solved(tmp_path / f"{bits}{own}", monkeypatch, {**recipe, "weight_bits": bits})
        chosen.append(layer_unit(store)[1]["smooth"])
        monkeypatch.setattr(Solve, "_spec", whole)
    assert torch.equal(chosen[0], chosen[1]) and not torch.equal(chosen[0], chosen[2])


def test_ditas_takes_peaks_and_output_errors_with_rounded_tokens_over_all_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outliers(store: MadeStore) -> None:
        factor = torch.ones(16)
        factor[[2, 9]] = 12.0
        store.rows = {**store.rows, FIRST: store.rows[FIRST] * factor}
        store.peaks = {**store.peaks, FIRST: store.peaks[FIRST] * factor}

    recipe = {"method": "ditas", "rank": 2, "rank_rounds": 1, "weight_group": 8, "smoothing_grid": 5}
    store, _ = solved(tmp_path, monkeypatch, {**recipe, "activation_bits": 3}, change=outliers)
    by_weight, _ = solved(tmp_path / "weight", monkeypatch, {**recipe, "smoothing_error": "weight"}, change=outliers)
    w, peaks = store.weights[FIRST], torch.zeros(16)
    batches, steps = store.peaks[FIRST].shape[:2]
    for step in range(steps):
        for batch in range(batches):
            peaks = torch.stack([max(a, b) for a, b in zip(peaks, store.peaks[FIRST][batch, step], strict=True)])
    errors, smooths = [], []
    for alpha in (0, 0.25, 0.5, 0.75, 1):
        smooth = smooth_of(peaks, w, alpha)
        scaled = w.double() / smooth
        u, s, v = torch.linalg.svd(scaled, full_matrices=False)
        low = (u[:, :2] * s[:2].sqrt()).bfloat16().double() @ (s[:2].sqrt()[:, None] * v[:2]).bfloat16().double()
        left = (scaled - low).float()
        scale, zero = slow_math.grid(left, 4, group=8)
        columns = [part.repeat_interleave(8, 1) for part in (scale, zero)]
        held = slow_math.values(slow_math.codes_of(left, *columns, 4), scale, zero)
        total = 0.0
        for step in range(steps):
            x = store.rows[FIRST][:, step].flatten(0, 1).double() * smooth
            total += float((slow_math.token_rounded(x, 3) @ held.T + x @ low.T - x @ scaled.T).square().sum())
        errors.append(total)
        smooths.append(smooth)
    best = errors.index(min(errors))
    assert torch.equal(layer_unit(store)[1]["smooth"].double(), smooths[best])
    assert not torch.equal(layer_unit(by_weight)[1]["smooth"].double(), smooths[best]), (
        "the weight alone chooses another"
    )


def test_duquant_turns_the_smoothed_rows_and_the_weight_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"method": "duquant", "transform_block": 8, "rotation_steps": 32, "weight_clip": False}
    store, _ = solved(tmp_path, monkeypatch, recipe, (FIRST, SECOND))
    turns = []
    for name in (FIRST, SECOND):
        marker, stored = layer_unit(store, name)
        smooth = smooth_of(store.peaks[FIRST].amax((0, 1)), store.weights[name], 0.6)
        assert torch.equal(stored["smooth"].double(), smooth)
        first, second = (torch.block_diag(turn, turn) for turn in stored["rotations"].double())
        turn = first[:, stored["between"].long()] @ second
        assert torch.allclose(turn @ turn.T, torch.eye(16, dtype=torch.float64), atol=1e-6)
        x = torch.cat([store.rows[FIRST][:, step].flatten(0, 1) for step in range(3)]).double() * smooth
        assert float((x @ turn).abs().max()) < float((x @ first).abs().max()) < float(x.abs().max())
        w = ((store.weights[name].double() / smooth) @ turn).float()
        held = assert_nearest(stored, w, 4)
        gram = turn.T @ (store.grams[name].double() * smooth * smooth.unsqueeze(1)) @ turn
        assert marker.value["error"] == pytest.approx(slow_math.error(w, held, gram), rel=1e-3)
        assert marker.value["spec"]["dual"] and marker.value["spec"]["block"] == 8
        turns.append(turn)
    assert not torch.allclose(*turns), "each layer's factors turn its input differently"


def test_greedy_rotations_without_smoothing_are_those_of_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"method": "duquant", "transform_block": 4, "smoothing": "none"}
    store, _ = solved(tmp_path, monkeypatch, recipe, (FIRST, SECOND))
    one, two = (layer_unit(store, name)[1] for name in (FIRST, SECOND))
    assert torch.equal(one["rotations"], two["rotations"]) and torch.equal(one["between"], two["between"])
