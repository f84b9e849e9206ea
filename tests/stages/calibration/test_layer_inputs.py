"""Shifted and migrating layers: what a unit of solve holds is what loops over the sampled rows give."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.methods._recipe import resolve
from adatsq_pipe.stages.numerics import greedy
from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.runtime.spec import LayerSpec
from adatsq_pipe.stages.weights.solve import STAGE, SolveSettings
from adatsq_pipe.stages.weights.solve_worker import Solve
from adatsq_pipe.storage import tensors
from adatsq_pipe.storage.marker import Marker
from tests.support import slow_math
from tests.support.made_context import FIRST, MODULATION, SECOND
from tests.support.made_store import MadeStore, make_store
from tests.support.two_layer_denoiser import TwoLayerDenoiser


def _solved(
    folder: Path, patch: pytest.MonkeyPatch, recipe: Mapping[str, Any], *, gelu: bool = False, **more: Any
) -> tuple[MadeStore, Marker, dict[str, Tensor]]:
    """The unit of a first layer whose channels are off centre, by more at later steps; or are outputs of GELU, two
    channels far larger than the others."""
    store = make_store(folder, recipe={"conditioning_group": 0, **recipe}, **more)
    rows = store.rows[FIRST]
    offset = torch.linspace(-6, 6, rows.shape[-1]) * torch.tensor([1.0, 1.1, 3.0])[:, None, None]
    outliers = torch.ones(16).index_fill_(0, torch.tensor([3, 11]), 15.0)
    rows = functional.gelu(rows * outliers, approximate="tanh") if gelu else rows + offset
    store.rows = {**store.rows, FIRST: rows}
    denoiser = TwoLayerDenoiser().install(patch)
    for name, weight in store.weights.items():
        denoiser.transformer.get_parameter(f"{name}.weight").data.copy_(weight)
    store.write_survey()
    store.write_activations()
    store.write_grams()
    store.write_scores(curvature=True)
    worker = Solve(store.context)
    for name in (FIRST, SECOND, MODULATION):
        worker(f"layer/{name}")
    marker, where = store.context.read("solve", f"layer/{FIRST}")
    return store, marker, tensors.read(where)


def _by_step(store: MadeStore) -> list[Tensor]:
    """The first layer's rows at every step, [n, in]."""
    return [store.rows[FIRST][:, step].flatten(0, -2) for step in range(3)]


def _half_way(rows: Tensor) -> list[float]:
    return [(max(column) + min(column)) / 2 for column in rows.T.tolist()]


def _layer(marker: Marker, stored: dict[str, Tensor]) -> QuantizedLinear:
    out, width = stored["codes"].shape
    spec = LayerSpec(**marker.value["spec"])
    layer = QuantizedLinear(width, out, spec=spec, steps=3, bias=False, dtype=torch.float32)
    layer.set_tensors(stored)
    return layer


def test_each_group_of_steps_subtracts_the_mean_of_its_midpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two steps are alike. What is left of a channel's range lies around zero."""
    recipe = {"method": "rtn", "shift_groups": 2, "weight_bits": 8}
    store, marker, stored = _solved(tmp_path, monkeypatch, recipe)
    z = [_half_way(rows) for rows in _by_step(store)]
    wanted = torch.tensor([[(a + b) / 2 for a, b in zip(z[0], z[1], strict=True)], z[2]])
    assert stored["shift_group"].tolist() == [0, 0, 1] and marker.value["spec"]["shift_groups"] == 2
    torch.testing.assert_close(stored["shift"].float(), wanted, rtol=2**-8, atol=0)
    w = store.weights[FIRST].double()
    torch.testing.assert_close(stored["shift_output"].double(), stored["shift"].double() @ w.T, rtol=1e-5, atol=1e-5)
    left = _by_step(store)[2] - stored["shift"][1].float()
    assert (left.amax(0) + left.amin(0)).abs().max() < 0.1 < _by_step(store)[2].abs().max()


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "htg", "smoothing_layers": "all"},
        {"method": "rtn"},
        {"method": "duquant", "transform_block": 8, "rotation_steps": 16},
    ],
)
def test_shift_and_scale_leave_the_full_precision_output_as_it_is_at_every_step(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 8-bit weights on fine grids the layer is the linear to a hundredth; rounding the shift away would not be."""
    more = {"weight_bits": 8, "weight_group": 1, "shift_groups": 3}
    store, marker, stored = _solved(tmp_path, monkeypatch, {**recipe, **more})
    layer = _layer(marker, stored)
    for step, x in enumerate(_by_step(store)):
        layer.set_step(step, (16, 16, 16))
        wanted = x.double() @ store.weights[FIRST].double().T
        assert (layer(x).double() - wanted).norm() < 0.005 * wanted.norm()
        assert stored["shift"][step].float().abs().max() > 5


def test_the_scale_is_that_of_the_shifted_input_s_moving_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"method": "htg", "smoothing_layers": "all", "shift_groups": 2}
    store, _, stored = _solved(tmp_path, monkeypatch, recipe)
    w, size = store.weights[FIRST].double(), torch.zeros(16, dtype=torch.float64)
    for step, x in enumerate(_by_step(store)):
        peak = (x - stored["shift"][int(stored["shift_group"][step])].float()).abs().amax(0).double()
        size = peak if step == 0 else 0.99 * size + 0.01 * peak
    s = (size / w.abs().amax(0)).sqrt()
    torch.testing.assert_close(stored["smooth"].double(), (1 / s).bfloat16().double(), rtol=2**-7, atol=0)
    scaled = (w / stored["smooth"].double()).float()
    scale, zero = slow_math.grid(scaled, 4)
    assert torch.equal(stored["codes"].float(), slow_math.codes_of(scaled, scale, zero, 4))


def test_gptq_minimises_the_output_error_of_the_shifted_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"method": "rtn", "solver": "gptq", "shift_groups": 3, "weight_bits": 3}
    store, marker, stored = _solved(tmp_path, monkeypatch, recipe, solve={"act_order": False})
    shifted = [x - stored["shift"][step].float() for step, x in enumerate(_by_step(store))]
    gram = torch.stack([x.double().T @ x.double() / len(x) / 3 for x in shifted]).sum(0)
    scale, zero = slow_math.grid(store.weights[FIRST], 3)
    codes = slow_math.gptq(store.weights[FIRST], gram.float(), scale, zero, 3, damping=0.01, act_order=False)
    assert (stored["codes"].double() == codes).double().mean() > 0.99
    held = slow_math.values(stored["codes"].float(), scale, zero)
    assert marker.value["error"] == pytest.approx(slow_math.error(store.weights[FIRST], held, gram), rel=1e-3)


def test_greedy_rotations_are_those_of_the_shifted_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"method": "duquant", "transform_block": 8, "rotation_steps": 16, "smoothing": "none", "shift_groups": 3}
    store, marker, stored = _solved(tmp_path, monkeypatch, recipe)
    x = torch.cat([x - stored["shift"][step].float() for step, x in enumerate(_by_step(store))])
    source = next(row.input_of for row in survey_of(store.context).layers if row.name == FIRST)
    wanted, between = greedy.dual_rotation(x, block=8, steps=16, seed=zlib.crc32(source.encode()))
    assert marker.value["spec"]["dual"] and marker.value["spec"]["shift_groups"] == 3
    torch.testing.assert_close(stored["rotations"], wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(stored["between"], between)


def test_rounded_tokens_of_the_shifted_input_choose_the_exponent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"method": "rtn", "smoothing": "smoothquant", "smoothing_grid": 3, "smoothing_error": "tokens"}
    store, _, stored = _solved(tmp_path, monkeypatch, {**recipe, "activation_bits": 3, "shift_groups": 3})
    shifted = [x - stored["shift"][step].float() for step, x in enumerate(_by_step(store))]
    peaks, w = torch.cat(shifted).abs().amax(0).double(), store.weights[FIRST].double()
    errors, smooths = [], []
    for alpha in (0, 0.5, 1):
        by = (w.abs().amax(0) ** (1 - alpha) / peaks**alpha).bfloat16().double()
        scaled = (w / by).float()
        scale, zero = slow_math.grid(scaled, 4)
        held = slow_math.values(slow_math.codes_of(scaled, scale, zero, 4), scale, zero)
        tokens = [slow_math.token_rounded(x.double() * by, 3) for x in shifted]
        parts = [(q @ held.T - x.double() @ w.T).square().sum() for q, x in zip(tokens, shifted, strict=True)]
        errors.append(float(sum(parts)))
        smooths.append(by)
    torch.testing.assert_close(stored["smooth"].double(), smooths[errors.index(min(errors))], rtol=2**-7, atol=0)


@pytest.mark.parametrize(
    ("layers", "gelu", "taken"),
    [("gelu", True, True), ("gelu", False, False), ("not_gelu", True, False), ("not_gelu", False, True)],
)
def test_only_layers_of_the_named_kind_are_shifted_and_scaled(
    layers: str, gelu: bool, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"method": "htg", "smoothing_layers": layers}
    store, marker, stored = _solved(tmp_path, monkeypatch, recipe, gelu=gelu)
    assert ("shift" in stored, "smooth" in stored) == (taken, taken)
    assert ("shift_groups" in marker.value["spec"], marker.value["smoothing"] == "on the fly") == (taken, taken)
    modulation = store.context.read("solve", f"layer/{MODULATION}")[0].value
    assert "shift_groups" not in modulation["spec"]


def test_the_momentum_starts_at_all_rows_and_follows_eight_batches_of_all_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, stored = _solved(tmp_path, monkeypatch, {"method": "taq_dit", "smoothing": "none"}, gelu=True)
    z = _half_way(torch.cat(_by_step(store)))
    for i in range(8):
        batch = torch.cat([x[[n for n in range(len(x)) if n % 8 == i]] for x in _by_step(store)])
        if len(batch):
            z = [0.95 * old + 0.05 * new for old, new in zip(z, _half_way(batch), strict=True)]
    assert stored["shift_group"].tolist() == [0, 0, 0]
    torch.testing.assert_close(stored["shift"][0].double(), torch.tensor(z).double(), rtol=2**-7, atol=1e-6)


def test_as_many_outliers_migrate_as_give_the_least_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens and weight at 3 bits, rounded by hand, for every number of outlier channels that is tried."""
    recipe = {"method": "taq_dit", "activation_bits": 3, "weight_bits": 3}
    store, _, stored = _solved(tmp_path, monkeypatch, recipe, gelu=True)
    z, w = stored["shift"][0].float(), store.weights[FIRST]
    x = torch.cat(_by_step(store)) - z
    peaks, errors = x.abs().amax(0), dict[tuple[int, ...], float]()
    for outliers in (0, 1, 2, 4, 8):
        rest = float(peaks.sort(descending=True).values[outliers])
        factors = [max(1, round(float(peak) / rest)) for peak in peaks]
        by = (1 / torch.tensor(factors)).bfloat16().float()
        scaled, tokens = (w.double() / by.double()).float(), x * by
        scale, zero = slow_math.grid(scaled, 3)
        held = slow_math.values(slow_math.codes_of(scaled, scale, zero, 3), scale, zero)
        low, high = tokens.amin(1, keepdim=True).clamp(max=0), tokens.amax(1, keepdim=True).clamp(min=0)
        step = (high - low) / 7
        rounded = ((tokens / step).round().clamp(min=(low / step).round(), max=(low / step).round() + 7)) * step
        error = (rounded.double() @ held.double().T - x.double() @ w.double().T).square().sum()
        errors[tuple(factors)] = float(error)
    best = min(errors, key=lambda factors: errors[factors])
    assert max(best) > 1 and len(errors) > 2
    assert (1 / stored["smooth"].float()).round().int().tolist() == list(best)


def test_shifts_count_for_the_bytes_only_where_there_are_any() -> None:
    def of(**recipe: Any) -> Any:
        return STAGE.reads(RunSettings([ComputeSettings(), SolveSettings(), resolve(recipe)]), "model")

    assert not {"shift_groups", "shift_momentum", "smoothing_layers"} & set(of(method="smoothquant")["recipe"])
    assert of(method="htg")["recipe"]["shift_groups"] == 5
    assert of(method="htg", activation_bits=4) == of(method="htg", activation_bits=8)
    assert of(method="taq_dit", activation_bits=4) != of(method="taq_dit", activation_bits=8)
