"""Every layer's unit holds what a slow solve of the same weight under the same Gram matrix gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.methods._recipe import resolve
from adatsq_pipe.stages.numerics import gptq
from adatsq_pipe.stages.weights.solve import STAGE, SolveSettings, sharers
from adatsq_pipe.stages.weights.solve_worker import Solve
from adatsq_pipe.storage import tensors
from adatsq_pipe.storage.marker import Marker
from tests.support import slow_math
from tests.support.made_context import FIRST, MODULATION, SECOND
from tests.support.made_store import MadeStore, make_store
from tests.support.two_layer_denoiser import TwoLayerDenoiser

GAUSSIAN_4_BITS = (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326)
"""The positive levels of the optimum 16-level quantizer of a standard normal (Max 1960, table I)."""


def _solved(
    folder: Path,
    patch: pytest.MonkeyPatch,
    recipe: Mapping[str, Any],
    names: tuple[str, ...] = (FIRST,),
    change: Callable[[MadeStore], None] = lambda store: None,
    **more: Any,
) -> tuple[MadeStore, Solve]:
    """A store, changed before it is written, whose layers `names` are solved under `recipe` for the store's weights."""
    store = make_store(folder, recipe={"conditioning_group": 0, **recipe}, **more)
    change(store)
    denoiser = TwoLayerDenoiser().install(patch)
    for name, weight in store.weights.items():
        denoiser.transformer.get_submodule(name).weight.data.copy_(weight)
    store.write_survey()
    store.write_activations()
    store.write_grams()
    store.write_scores(curvature=True)
    worker = Solve(store.context)
    for name in names:
        worker(f"layer/{name}")
    return store, worker


def _unit(store: MadeStore, name: str = FIRST) -> tuple[Marker, dict[str, Tensor]]:
    marker, folder = store.context.read("solve", f"layer/{name}")
    return marker, tensors.read(folder)


def _assert_nearest(stored: Mapping[str, Tensor], w: Tensor, bits: int, **of_grid: Any) -> Tensor:
    """Assert that the unit holds `w` rounded to nearest; return its values."""
    scale, zero = slow_math.grid(w, bits, **of_grid)
    repeat = w.shape[1] // scale.shape[1]
    codes = slow_math.codes_of(w.float(), scale.repeat_interleave(repeat, 1), zero.repeat_interleave(repeat, 1), bits)
    assert torch.equal(stored["scale"].float(), scale)
    assert torch.equal(stored["zero"].float(), zero)
    assert torch.equal(stored["codes"].float(), codes)
    return slow_math.values(codes, scale, zero)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("group", "damping", "bits"), [(0, 0.01, 4), (8, 0.6, 3)])
def test_adatsq_is_gptq_of_the_rotated_weight_written_out(
    act_order: bool, group: int, damping: float, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = {"damping": damping, "act_order": act_order}
    recipe = {"weight_group": group, "weight_bits": bits, "conditioning_bits": 3}
    names = (FIRST, SECOND, MODULATION)
    store, _ = _solved(tmp_path, monkeypatch, recipe, names, solve=solve)
    for name in names:
        marker, stored = _unit(store, name)
        tokens = name != MODULATION
        block, own, size = (16, bits, group) if tokens else (1, 3, 0)
        w = slow_math.rotated(store.weights[name], block).float()
        gram = slow_math.rotated(slow_math.rotated(store.grams[name], block).T, block)
        scale, zero = slow_math.grid(w, own, group=size, clip=True)
        codes = slow_math.gptq(w, gram, scale, zero, own, damping=damping, act_order=act_order)
        assert torch.equal(stored["scale"].float(), scale)
        assert torch.equal(stored["zero"].float(), zero)
        assert torch.equal(stored["codes"].double(), codes)
        repeat = w.shape[1] // scale.shape[1]
        columns = scale.repeat_interleave(repeat, 1), zero.repeat_interleave(repeat, 1)
        nearest = slow_math.values(slow_math.codes_of(w, *columns, own), scale, zero)
        value = marker.value
        held = slow_math.values(codes, scale, zero)
        assert value["error"] == pytest.approx(slow_math.error(w, held, gram), rel=1e-5)
        assert value["damping"] == damping and value["smoothing"] == "none"
        assert value["error"] < slow_math.error(w, nearest, gram)
        plain = {"weight_bits": own, "group": size, "block": block, "symmetric_activations": False}
        assert value["spec"] == plain


def _solving(store: MadeStore, patch: pytest.MonkeyPatch) -> tuple[Solve, list[int]]:
    """A worker, and the widths of the matrices that it factors."""
    factored = list[int]()
    factor = gptq.factor

    def counted(H_II: Tensor, **how: Any) -> gptq.Factor:
        factored.append(len(H_II))
        return factor(H_II, **how)

    patch.setattr(gptq, "factor", counted)
    return Solve(store.context), factored


def test_layers_of_one_input_are_one_task_and_its_gram_matrix_is_factored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share(store: MadeStore) -> None:
        store.grams[SECOND] = store.grams[FIRST]

    store, _ = _solved(tmp_path, monkeypatch, {}, (SECOND,), change=share)
    alone = {key: value.clone() for key, value in _unit(store, SECOND)[1].items()}
    tasks = sharers(survey_of(store.context).layers)
    assert tasks == {f"layers/{FIRST}": [FIRST, SECOND], f"layers/{MODULATION}": [MODULATION]}
    manifest = store.manifest("hessian")
    value = {n: {"gram": FIRST, "tau": None, "effective_steps": store.steps} for n in (FIRST, SECOND)}
    tensors.write(manifest.open_unit(f"gram/{FIRST}"), {FIRST: store.grams[FIRST]})
    manifest.commit(f"gram/{FIRST}", value=value)
    store.manifest("solve").open_unit(f"layer/{SECOND}")
    worker, factored = _solving(store, monkeypatch)
    for task in tasks:
        worker(task)
    assert factored == [16, store.grams[MODULATION].shape[0]]
    again = _unit(store, SECOND)[1]
    assert all(torch.equal(again[key], alone[key]) for key in alone)
    worker(f"layers/{FIRST}")
    assert len(factored) == 2, "nothing was missing"


def test_inputs_of_other_weights_over_timesteps_are_factored_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = _solved(tmp_path, monkeypatch, {}, ())
    worker, factored = _solving(store, monkeypatch)
    worker(f"layers/{FIRST}")
    assert len(factored) == 2
    assert not torch.equal(store.grams[FIRST], store.grams[SECOND])


def test_the_damping_and_the_order_decide_codes(tmp_path: Path) -> None:
    """Without this the comparison above would pass whatever damping and order are."""
    store = make_store(tmp_path)
    w, gram = store.weights[FIRST], store.grams[FIRST]
    scale, zero = slow_math.grid(w, 3)

    def codes(damping: float, act_order: bool) -> Tensor:
        return slow_math.gptq(w, gram, scale, zero, 3, damping=damping, act_order=act_order)

    right = codes(0.6, True)
    assert not torch.equal(right, codes(0.01, True))
    assert not torch.equal(right, codes(0.6, False))


def test_a_matrix_that_no_damping_helps_is_refused_with_the_layer_and_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(store: MadeStore) -> None:
        store.grams[SECOND] = -torch.eye(16)

    store, worker = _solved(tmp_path, monkeypatch, {}, (), spoil)
    with pytest.raises(StageError, match=rf"layer {SECOND}: Gram matrix .* raise solve\.damping or capture\.rows"):
        worker(f"layer/{SECOND}")
    assert not store.manifest("solve").done(f"layer/{SECOND}")


@pytest.mark.parametrize(("symmetric", "group", "bits"), [(False, 0, 4), (True, 0, 4), (False, 4, 2), (True, 8, 8)])
def test_rtn_is_the_nearest_code(
    symmetric: bool, group: int, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"method": "rtn", "weight_symmetric": symmetric, "weight_group": group, "weight_bits": bits}
    store, _ = _solved(tmp_path, monkeypatch, recipe)
    marker, stored = _unit(store)
    held = _assert_nearest(stored, store.weights[FIRST], bits, symmetric=symmetric, group=group)
    right = slow_math.error(store.weights[FIRST], held, store.grams[FIRST])
    assert marker.value["error"] == pytest.approx(right, rel=1e-5)
    assert marker.value["damping"] == 0
    assert set(stored) == {"codes", "scale", "zero"}
    assert stored["codes"].dtype == stored["zero"].dtype == torch.uint8 and stored["scale"].dtype == torch.bfloat16


def test_orbitquant_is_the_nearest_level_of_a_gaussian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = _solved(tmp_path, monkeypatch, {"method": "orbitquant", "transform_block": 4})
    marker, stored = _unit(store)
    order = np.random.default_rng(list(FIRST.encode())).permutation(16).tolist()
    assert stored["order"].tolist() == order and order != list(range(16))
    assert torch.allclose(
        stored["book"], torch.tensor([-x for x in GAUSSIAN_4_BITS[::-1]] + [*GAUSSIAN_4_BITS]), atol=2e-3
    )
    w = slow_math.rotated(store.weights[FIRST][:, order], 4)
    gram = slow_math.rotated(slow_math.rotated(store.grams[FIRST][order][:, order], 4).T, 4)
    held = torch.zeros_like(w)
    for o, row in enumerate(w):
        size = float(row.float().square().mean().sqrt().bfloat16())
        assert float(stored["scale"][o, 0]) == size
        for i, value in enumerate(row):
            code = min(range(16), key=lambda k: abs(float(stored["book"][k]) - float(value) / size))
            assert int(stored["codes"][o, i]) == code
            held[o, i] = float(stored["book"][code]) * size
    assert marker.value["error"] == pytest.approx(slow_math.error(w, held, gram), rel=1e-5)
    assert marker.value["spec"]["codebook"] and marker.value["spec"]["activation_codebook"]


def _joint_error(store: MadeStore, order: list[int], group: int) -> float:
    """Squared output error with an 8-bit weight and 4-bit tokens in groups, channels in an order."""
    w = store.weights[FIRST].double()[:, order]
    scale, zero = slow_math.grid(w, 8, group=group)
    wide = [part.repeat_interleave(group, 1) for part in (scale, zero)]
    held = slow_math.values(slow_math.codes_of(w.float(), *wide, 8), scale, zero)
    total = 0.0
    for x in store.rows[FIRST].flatten(0, -2).double()[:, order]:
        parts = []
        for part in x.split(group):
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            size = (high - low) / 15
            zero_point = round(-low / size)
            parts.append((((part / size).round() + zero_point).clamp(0, 15) - zero_point) * size)
        total += float(((torch.cat(parts) @ held.T) - (x @ w.T)).square().sum())
    return total


@pytest.mark.parametrize("helps", [True, False])
def test_permuquant_sorts_channels_where_that_lowers_the_error(
    helps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spread(store: MadeStore) -> None:
        factor = torch.ones(16)
        factor[[3, 11]] = 1.0 if helps else 30.0
        store.rows = {**store.rows, FIRST: store.rows[FIRST] * factor}

    recipe = {"method": "permuquant", "weight_group": 8, "activation_group": 8, "weight_bits": 8}
    store, _ = _solved(tmp_path, monkeypatch, recipe, change=spread)
    marker, stored = _unit(store)
    squares = store.rows[FIRST].flatten(0, -2).double().square().mean(0)
    moments = (squares * store.weights[FIRST].double().square().mean(0)).tolist()
    order = sorted(range(16), key=lambda channel: -moments[channel])
    better = _joint_error(store, order, 8) < _joint_error(store, list(range(16)), 8)
    assert better == helps
    assert marker.value["spec"].get("permuted", False) == better
    assert stored.get("order", torch.arange(16)).tolist() == (order if better else list(range(16)))


def test_magr_is_gptq_of_the_smaller_weight_judged_by_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = _solved(tmp_path, monkeypatch, {"method": "magr", "transform_block": 4, "magnitude_penalty": 0.05})
    marker, stored = _unit(store)
    w, gram = (slow_math.rotated(m, 4) for m in (store.weights[FIRST], store.grams[FIRST]))
    gram = slow_math.rotated(gram.T, 4)
    held = slow_math.values(stored["codes"], stored["scale"], stored["zero"])
    assert marker.value["error"] == pytest.approx(slow_math.error(w, held, gram), rel=1e-4)
    plain, _ = _solved(
        tmp_path / "plain", monkeypatch, {"method": "magr", "transform_block": 4, "magnitude_penalty": 0}
    )
    assert bool((stored["scale"] <= _unit(plain)[1]["scale"]).all())


def _smooth(peaks: Tensor, w: Tensor, alpha: float) -> Tensor:
    """What the layer multiplies its input by: max|W|^(1 - alpha) / max|X|^alpha (SmoothQuant, eq. 4)."""
    sizes = [float(w[:, j].abs().max()) ** (1 - alpha) / float(peaks[j]) ** alpha for j in range(w.shape[1])]
    return torch.tensor(sizes, dtype=torch.float64).bfloat16().double()


@pytest.mark.parametrize("over", ["all", "noisiest", "salience"])
def test_smoothing_takes_peaks_over_the_steps_that_the_recipe_names(
    over: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = pytest.importorskip("scipy.stats")
    recipe = {"method": "smoothquant", "smoothing_over": over, "smoothing_alpha": 0.75}
    store, _ = _solved(tmp_path, monkeypatch, recipe)
    marker, stored = _unit(store)
    w, steps = store.weights[FIRST], store.peaks[FIRST].amax(0)
    if over == "salience":
        rho = np.array([stats.spearmanr(peaks, w.abs().amax(0)).statistic for peaks in steps])
        peaks = torch.from_numpy(np.exp(-rho) / np.exp(-rho).sum() @ steps.double().numpy())
    else:
        peaks = steps[0] if over == "noisiest" else steps.amax(0)
    smooth = _smooth(peaks, w, 0.75)
    assert torch.equal(stored["smooth"].double(), smooth)
    scaled = (w.double() / smooth).float()
    held = _assert_nearest(stored, scaled, 4)
    gram = store.grams[FIRST].double() * smooth * smooth.unsqueeze(1)
    assert marker.value["error"] == pytest.approx(slow_math.error(scaled, held, gram), rel=1e-5)
    assert marker.value["smoothing"] == "on the fly" and marker.value["spec"]["smoothed"]


def test_channels_in_another_order_keep_their_own_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = _solved(tmp_path, monkeypatch, {"method": "smoothquant", "permuted": True})
    _, stored = _unit(store)
    order = stored["order"].long()
    smooth = _smooth(store.peaks[FIRST].amax((0, 1)), store.weights[FIRST], 0.5)
    assert torch.equal(stored["smooth"].double(), smooth[order])
    _assert_nearest(stored, (store.weights[FIRST].double() / smooth)[:, order].float(), 4)


def test_a_layer_that_smoothing_skips_keeps_its_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"method": "smoothquant", "smoothing_skip": ["second"]}
    store, _ = _solved(tmp_path, monkeypatch, recipe, (FIRST, SECOND))
    marker, stored = _unit(store, SECOND)
    _assert_nearest(stored, store.weights[SECOND], 4)
    assert "smooth" not in stored and marker.value["smoothing"] == "none"
    assert "smooth" in _unit(store, FIRST)[1]


def test_of_several_exponents_the_one_of_least_error_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = _solved(tmp_path, monkeypatch, {"method": "smoothquant", "smoothing_grid": 4, "weight_bits": 3})
    marker, stored = _unit(store)
    w, peaks, errors, smooths = store.weights[FIRST], store.peaks[FIRST].amax((0, 1)), [], []
    for alpha in (0, 1 / 3, 2 / 3, 1):
        smooth = _smooth(peaks, w, alpha)
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
        store, _ = _solved(tmp_path / f"{bits}{own}", monkeypatch, {**recipe, "weight_bits": bits})
        chosen.append(_unit(store)[1]["smooth"])
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
    store, _ = _solved(tmp_path, monkeypatch, {**recipe, "activation_bits": 3}, change=outliers)
    by_weight, _ = _solved(tmp_path / "weight", monkeypatch, {**recipe, "smoothing_error": "weight"}, change=outliers)
    w, peaks = store.weights[FIRST], torch.zeros(16)
    batches, steps = store.peaks[FIRST].shape[:2]
    for step in range(steps):
        for batch in range(batches):
            peaks = torch.stack([max(a, b) for a, b in zip(peaks, store.peaks[FIRST][batch, step], strict=True)])
    errors, smooths = [], []
    for alpha in (0, 0.25, 0.5, 0.75, 1):
        smooth = _smooth(peaks, w, alpha)
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
    assert torch.equal(_unit(store)[1]["smooth"].double(), smooths[best])
    assert not torch.equal(_unit(by_weight)[1]["smooth"].double(), smooths[best]), "the weight alone chooses another"


def test_duquant_turns_the_smoothed_rows_and_the_weight_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"method": "duquant", "transform_block": 8, "rotation_steps": 32, "weight_clip": False}
    store, _ = _solved(tmp_path, monkeypatch, recipe, (FIRST, SECOND))
    turns = []
    for name in (FIRST, SECOND):
        marker, stored = _unit(store, name)
        smooth = _smooth(store.peaks[FIRST].amax((0, 1)), store.weights[name], 0.6)
        assert torch.equal(stored["smooth"].double(), smooth)
        first, second = (torch.block_diag(turn, turn) for turn in stored["rotations"].double())
        turn = first[:, stored["between"].long()] @ second
        assert torch.allclose(turn @ turn.T, torch.eye(16, dtype=torch.float64), atol=1e-6)
        x = torch.cat([store.rows[FIRST][:, step].flatten(0, 1) for step in range(3)]).double() * smooth
        assert float((x @ turn).abs().max()) < float((x @ first).abs().max()) < float(x.abs().max())
        w = ((store.weights[name].double() / smooth) @ turn).float()
        held = _assert_nearest(stored, w, 4)
        gram = turn.T @ (store.grams[name].double() * smooth * smooth.unsqueeze(1)) @ turn
        assert marker.value["error"] == pytest.approx(slow_math.error(w, held, gram), rel=1e-3)
        assert marker.value["spec"]["dual"] and marker.value["spec"]["block"] == 8
        turns.append(turn)
    assert not torch.allclose(*turns), "each layer's factors turn its input differently"


def test_greedy_rotations_without_smoothing_are_those_of_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"method": "duquant", "transform_block": 4, "smoothing": "none"}
    store, _ = _solved(tmp_path, monkeypatch, recipe, (FIRST, SECOND))
    one, two = (_unit(store, name)[1] for name in (FIRST, SECOND))
    assert torch.equal(one["rotations"], two["rotations"]) and torch.equal(one["between"], two["between"])


def test_the_branch_is_the_truncated_svd_and_codes_are_what_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = _solved(tmp_path, monkeypatch, {"method": "rtn", "rank": 2, "solver": "rtn"})
    marker, stored = _unit(store)
    w = store.weights[FIRST]
    u, s, v = np.linalg.svd(w.double().numpy(), full_matrices=False)
    low = stored["up"].double() @ stored["down"].double()
    best = torch.from_numpy(u[:, :2] * s[:2] @ v[:2])
    assert torch.allclose(low, best, atol=0.02 * float(best.abs().max()))
    assert stored["up"].dtype == stored["down"].dtype == torch.bfloat16
    held = _assert_nearest(stored, (w.double() - low).float(), 4)
    assert marker.value["error"] == pytest.approx(slow_math.error(w, low + held, store.grams[FIRST]), rel=1e-4)


def test_rounds_of_the_branch_stop_at_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"method": "rtn", "rank": 2, "weight_bits": 3}
    one, _ = _solved(tmp_path / "one", monkeypatch, recipe)
    many, _ = _solved(tmp_path / "many", monkeypatch, {**recipe, "rank_rounds": 20})
    w, errors = one.weights[FIRST].double(), []
    held = torch.zeros_like(w)
    for _ in range(20):
        u, s, v = torch.linalg.svd(w - held, full_matrices=False)
        low = (u[:, :2] * s[:2].sqrt()).bfloat16().double() @ (s[:2].sqrt()[:, None] * v[:2]).bfloat16().double()
        scale, zero = slow_math.grid((w - low).float(), 3)
        held = slow_math.values(slow_math.codes_of((w - low).float(), scale, zero, 3), scale, zero)
        errors.append(slow_math.error(w, low + held, one.grams[FIRST]))
        if len(errors) > 1 and errors[-1] >= errors[-2]:
            break
    assert len(errors) > 2
    assert _unit(one)[0].value["error"] == pytest.approx(errors[0], rel=1e-4)
    assert _unit(many)[0].value["error"] == pytest.approx(min(errors), rel=1e-4)


@pytest.mark.parametrize(("groups", "place"), [(1, [0, 0, 0]), (2, [0, 0, 1]), (3, [0, 1, 2]), (10, [0, 1, 2])])
def test_each_group_of_steps_has_the_range_of_its_own_rows(
    groups: int, place: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"method": "rtn", "time_groups": groups, "activation_bits": 6}
    store, _ = _solved(tmp_path, monkeypatch, recipe)
    marker, stored = _unit(store)
    assert stored["time_group"].tolist() == place
    rows = store.rows[FIRST]
    for g in range(max(place) + 1):
        x = rows[:, [step for step in range(3) if place[step] == g]]
        scale = (float(x.max()) - float(x.min())) / 63
        assert float(stored["step_scale"][g]) == pytest.approx(scale, rel=1e-6)
        assert float(stored["step_zero"][g]) == round(-float(x.min()) / scale)
    _assert_nearest(stored, store.weights[FIRST], 4)
    assert marker.value["spec"]["time_groups"] == max(place) + 1


def test_calibrated_ranges_are_those_of_the_smoothed_and_rotated_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"method": "smoothquant", "time_groups": 3, "transform": "hadamard", "transform_block": 8}
    store, _ = _solved(tmp_path, monkeypatch, recipe)
    _, stored = _unit(store)
    for step in range(3):
        x = slow_math.rotated(store.rows[FIRST][:, step].flatten(0, 1).double() * stored["smooth"].double(), 8)
        assert float(stored["step_scale"][step]) == pytest.approx((float(x.max()) - float(x.min())) / 15, rel=1e-5)
    _assert_nearest(stored, slow_math.rotated(store.weights[FIRST].double() / stored["smooth"].double(), 8).float(), 4)


def test_inputs_after_gelu_have_a_scale_for_positive_values_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def activate(store: MadeStore) -> None:
        store.rows[FIRST] = torch.nn.functional.gelu(store.rows[FIRST])

    recipe = {"method": "rtn", "time_groups": 3, "regions": True}
    before, _ = _solved(tmp_path / "before", monkeypatch, recipe)
    assert "regions" not in _unit(before)[0].value["spec"]
    store, _ = _solved(tmp_path / "after", monkeypatch, recipe, (FIRST,), activate)
    marker, stored = _unit(store)
    assert marker.value["spec"]["regions"]
    for step in range(3):
        assert float(stored["step_scale"][step]) == pytest.approx(float(store.rows[FIRST][:, step].max()) / 7, rel=1e-6)
    assert stored["step_zero"].tolist() == [0, 0, 0]


def test_searched_scales_are_least_in_the_error_that_the_curvature_weighs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the multiples of a group's min-max none does better than the stored scale, beside the stored weight."""
    recipe = {"method": "tq_dit", "time_groups": 2, "regions": False, "weight_bits": 3, "activation_bits": 3}
    store, _ = _solved(tmp_path, monkeypatch, recipe)
    _, stored = _unit(store)
    w, curvature = store.weights[FIRST].double(), store.curvature[FIRST].double().sum(0)
    held = slow_math.values(stored["codes"], stored["scale"], stored["zero"])
    multiples = [*np.linspace(0.01, 1.2, 101), 1.0]
    plain = []
    for g, steps in enumerate(([0, 1], [2])):
        x, h = store.rows[FIRST][:, steps].flatten(0, 2).double(), curvature[steps].sum(0)
        span = (float(x.max()) - float(x.min())) / 7
        zero = round(-float(x.min()) / span)

        def off(scale: float, x: Tensor = x, h: Tensor = h, zero: int = zero) -> float:
            rounded = (torch.round(x / scale)).clamp(-zero, 7 - zero) * scale
            return float(((x @ w.T - rounded @ held.T).square() * h).sum())

        least = min(off(span * m) for m in multiples)
        assert off(float(stored["step_scale"][g])) <= least * (1 + 1e-4)
        plain.append(off(span) / least)
    assert max(plain) > 1.05


def test_the_bytes_depend_on_what_the_recipe_uses_of_its_fields() -> None:
    """Activation bits count for calibrated scales and for searched groups, the allocation never."""

    def of(**recipe: Any) -> Any:
        return STAGE.reads(RunSettings([ComputeSettings(), SolveSettings(), resolve(recipe)]), "model")

    assert of(method="rtn", activation_bits=4) == of(method="rtn", activation_bits=8)
    assert of(method="rtn", allocation="uniform") == of(method="rtn", allocation="trellis")
    assert of(method="rtn", weight_bits=4) != of(method="rtn", weight_bits=3)
    static = {"method": "rtn", "time_groups": 2}
    assert of(**static, activation_bits=4) != of(**static, activation_bits=8)
    assert of(**static, time_search=True) != of(**static, time_search=False)
    assert of(method="q_dit", activation_bits=4) != of(method="q_dit", activation_bits=8)


@pytest.mark.parametrize("rank", [0, 2])
def test_each_bin_of_steps_has_the_clipping_ratio_of_least_output_error(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ratio is tried on the bin's own rows: what the codes give for the clipped tokens, against what the weight
    beside the branch gives for the tokens as they are."""
    recipe = {"method": "rtn", "rank": rank, "clip_bins": 2, "activation_bits": 3}
    store, _ = _solved(tmp_path, monkeypatch, recipe)
    marker, stored = _unit(store)
    assert stored["clip_bin"].tolist() == [0, 0, 1] and marker.value["spec"]["clip_bins"] == 2
    low = stored["up"].double() @ stored["down"].double() if rank else 0
    meant = store.weights[FIRST].double() - low
    held = _assert_nearest(stored, meant.float(), 4).double()
    for bin, steps in enumerate(([0, 1], [2])):
        x = store.rows[FIRST][:, steps].flatten(0, 2).double()
        errors = []
        for step in range(13):
            ratio = 1 - step / 20
            ends = [x.amin(1, keepdim=True).clamp(max=0) * ratio, x.amax(1, keepdim=True).clamp(min=0) * ratio]
            scale = (ends[1] - ends[0]) / 7
            first = torch.round(ends[0] / scale)
            codes = torch.clamp(torch.round(x / scale) - first, 0, 7) + first
            errors.append(float((x @ meant.T - (codes * scale) @ held.T).square().sum()))
        best = errors.index(min(errors))
        assert float(stored["step_clip"][bin]) == pytest.approx(1 - best / 20)
    assert float(stored["step_clip"].min()) < 1, "clipping helps"


def test_bins_count_for_the_bytes_only_where_there_are_any() -> None:
    def of(**recipe: Any) -> Any:
        return STAGE.reads(RunSettings([ComputeSettings(), SolveSettings(), resolve(recipe)]), "model")

    assert "clip_bins" not in of(method="svdquant")["recipe"]
    binned = {"method": "svdquant", "clip_bins": 2}
    assert of(**binned)["recipe"]["clip_bins"] == 2
    assert of(**binned, activation_bits=4) != of(**binned, activation_bits=8)
