"""Every layer's unit holds what a slow solve of the same weight under the same Gram matrix gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.numerics import gptq
from adatsq_pipe.stages.weights.solve import sharers
from adatsq_pipe.stages.weights.solve_worker import Solve
from adatsq_pipe.storage import tensors
from tests.support import slow_math
from tests.support.made_context import FIRST, MODULATION, SECOND
from tests.support.made_store import MadeStore, make_store
from tests.support.solved_layers import assert_nearest, layer_unit, solved

GAUSSIAN_4_BITS = (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326)
"""The positive levels of the optimum 16-level quantizer of a standard normal (Max 1960, table I)."""


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("group", "damping", "bits"), [(0, 0.01, 4), (8, 0.6, 3)])
def test_adatsq_is_gptq_of_the_rotated_weight_written_out(
    act_order: bool, group: int, damping: float, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = {"damping": damping, "act_order": act_order}
    recipe = {"weight_group": group, "weight_bits": bits, "conditioning_bits": 3}
    names = (FIRST, SECOND, MODULATION)
    store, _ = solved(tmp_path, monkeypatch, recipe, names, solve=solve)
    for name in names:
        marker, stored = layer_unit(store, name)
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

    store, _ = solved(tmp_path, monkeypatch, {}, (SECOND,), change=share)
    alone = {key: value.clone() for key, value in layer_unit(store, SECOND)[1].items()}
    tasks = sharers(survey_of(store.context).layers)
    assert tasks == {f"layers/{FIRST}": [FIRST, SECOND], f"layers/{MODULATION}": [MODULATION]}
    manifest = store.manifest("hessian")
    value = {n: {"gram": FIRST, "tau": None, "effective_steps": store.steps} for n in (FIRST, SECOND)}
    tensors.write(manifest.open_unit(f"gram/{FIRST}"), {FIRST: slow_math.half(store.grams[FIRST])})
    manifest.commit(f"gram/{FIRST}", value=value)
    store.manifest("solve").open_unit(f"layer/{SECOND}")
    worker, factored = _solving(store, monkeypatch)
    for task in tasks:
        worker(task)
    assert factored == [16, store.grams[MODULATION].shape[0]]
    again = layer_unit(store, SECOND)[1]
    assert all(torch.equal(again[key], alone[key]) for key in alone)
    worker(f"layers/{FIRST}")
    assert len(factored) == 2, "nothing was missing"


def test_inputs_of_other_weights_over_timesteps_are_factored_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = solved(tmp_path, monkeypatch, {}, ())
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

    store, worker = solved(tmp_path, monkeypatch, {}, (), spoil)
    with pytest.raises(StageError, match=rf"layer {SECOND}: Gram matrix .* raise solve\.damping or capture\.rows"):
        worker(f"layer/{SECOND}")
    assert not store.manifest("solve").done(f"layer/{SECOND}")


@pytest.mark.parametrize(("symmetric", "group", "bits"), [(False, 0, 4), (True, 0, 4), (False, 4, 2), (True, 8, 8)])
def test_rtn_is_the_nearest_code(
    symmetric: bool, group: int, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"method": "rtn", "weight_symmetric": symmetric, "weight_group": group, "weight_bits": bits}
    store, _ = solved(tmp_path, monkeypatch, recipe)
    marker, stored = layer_unit(store)
    held = assert_nearest(stored, store.weights[FIRST], bits, symmetric=symmetric, group=group)
    right = slow_math.error(store.weights[FIRST], held, store.grams[FIRST])
    assert marker.value["error"] == pytest.approx(right, rel=1e-5)
    assert marker.value["damping"] == 0
    assert set(stored) == {"codes", "scale", "zero"}
    assert stored["codes"].dtype == stored["zero"].dtype == torch.uint8 and stored["scale"].dtype == torch.bfloat16


def test_orbitquant_is_the_nearest_level_of_a_gaussian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = solved(tmp_path, monkeypatch, {"method": "orbitquant", "transform_block": 4})
    marker, stored = layer_unit(store)
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
    store, _ = solved(tmp_path, monkeypatch, recipe, change=spread)
    marker, stored = layer_unit(store)
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
    store, _ = solved(tmp_path, monkeypatch, {"method": "magr", "transform_block": 4, "magnitude_penalty": 0.05})
    marker, stored = layer_unit(store)
    w, gram = (slow_math.rotated(m, 4) for m in (store.weights[FIRST], store.grams[FIRST]))
    gram = slow_math.rotated(gram.T, 4)
    held = slow_math.values(stored["codes"], stored["scale"], stored["zero"])
    assert marker.value["error"] == pytest.approx(slow_math.error(w, held, gram), rel=1e-4)
    plain, _ = solved(tmp_path / "plain", monkeypatch, {"method": "magr", "transform_block": 4, "magnitude_penalty": 0})
    assert bool((stored["scale"] <= layer_unit(plain)[1]["scale"]).all())
