"""Solve: low-rank branches, scales by groups of timesteps, and clipping by bins, written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.methods._recipe import resolve
from adatsq_pipe.stages.numerics import gptq
from adatsq_pipe.stages.weights.solve import STAGE, SolveSettings
from tests.support import slow_math
from tests.support.made_context import FIRST
from tests.support.made_store import MadeStore
from tests.support.solved_layers import assert_nearest, layer_unit, solved


def test_the_branch_is_the_truncated_svd_and_codes_are_what_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = solved(tmp_path, monkeypatch, {"method": "rtn", "rank": 2, "solver": "rtn"})
    marker, stored = layer_unit(store)
    w = store.weights[FIRST]
    u, s, v = np.linalg.svd(w.double().numpy(), full_matrices=False)
    low = stored["up"].double() @ stored["down"].double()
    best = torch.from_numpy(u[:, :2] * s[:2] @ v[:2])
    assert torch.allclose(low, best, atol=0.02 * float(best.abs().max()))
    assert stored["up"].dtype == stored["down"].dtype == torch.bfloat16
    held = assert_nearest(stored, (w.double() - low).float(), 4)
    assert marker.value["error"] == pytest.approx(slow_math.error(w, low + held, store.grams[FIRST]), rel=1e-4)


def test_rounds_of_the_branch_stop_at_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"method": "rtn", "rank": 2, "weight_bits": 3}
    one, _ = solved(tmp_path / "one", monkeypatch, recipe)
    many, _ = solved(tmp_path / "many", monkeypatch, {**recipe, "rank_rounds": 20})
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
    assert layer_unit(one)[0].value["error"] == pytest.approx(errors[0], rel=1e-4)
    assert layer_unit(many)[0].value["error"] == pytest.approx(min(errors), rel=1e-4)


@pytest.mark.parametrize(("groups", "place"), [(1, [0, 0, 0]), (2, [0, 0, 1]), (3, [0, 1, 2]), (10, [0, 1, 2])])
def test_each_group_of_steps_has_the_range_of_its_own_rows(
    groups: int, place: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"method": "rtn", "time_groups": groups, "activation_bits": 6}
    store, _ = solved(tmp_path, monkeypatch, recipe)
    marker, stored = layer_unit(store)
    assert stored["time_group"].tolist() == place
    rows = store.rows[FIRST]
    for g in range(max(place) + 1):
        x = rows[:, [step for step in range(3) if place[step] == g]]
        scale = (float(x.max()) - float(x.min())) / 63
        assert float(stored["step_scale"][g]) == pytest.approx(scale, rel=1e-6)
        assert float(stored["step_zero"][g]) == round(-float(x.min()) / scale)
    assert_nearest(stored, store.weights[FIRST], 4)
    assert marker.value["spec"]["time_groups"] == max(place) + 1


def test_calibrated_ranges_are_those_of_the_smoothed_and_rotated_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"method": "smoothquant", "time_groups": 3, "transform": "hadamard", "transform_block": 8}
    store, _ = solved(tmp_path, monkeypatch, recipe)
    _, stored = layer_unit(store)
    for step in range(3):
        x = slow_math.rotated(store.rows[FIRST][:, step].flatten(0, 1).double() * stored["smooth"].double(), 8)
        assert float(stored["step_scale"][step]) == pytest.approx((float(x.max()) - float(x.min())) / 15, rel=1e-5)
    assert_nearest(stored, slow_math.rotated(store.weights[FIRST].double() / stored["smooth"].double(), 8).float(), 4)


def test_inputs_after_gelu_have_a_scale_for_positive_values_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def activate(store: MadeStore) -> None:
        store.rows[FIRST] = torch.nn.functional.gelu(store.rows[FIRST])

    recipe = {"method": "rtn", "time_groups": 3, "regions": True}
    before, _ = solved(tmp_path / "before", monkeypatch, recipe)
    assert "regions" not in layer_unit(before)[0].value["spec"]
    store, _ = solved(tmp_path / "after", monkeypatch, recipe, (FIRST,), activate)
    marker, stored = layer_unit(store)
    assert marker.value["spec"]["regions"]
    for step in range(3):
        assert float(stored["step_scale"][step]) == pytest.approx(float(store.rows[FIRST][:, step].max()) / 7, rel=1e-6)
    assert stored["step_zero"].tolist() == [0, 0, 0]


def test_searched_scales_are_least_in_the_error_that_the_curvature_weighs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the multiples of a group's min-max none does better than the stored scale, beside the stored weight."""
    recipe = {"method": "tq_dit", "time_groups": 2, "regions": False, "weight_bits": 3, "activation_bits": 3}
    store, _ = solved(tmp_path, monkeypatch, recipe)
    _, stored = layer_unit(store)
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
    store, _ = solved(tmp_path, monkeypatch, recipe)
    marker, stored = layer_unit(store)
    assert stored["clip_bin"].tolist() == [0, 0, 1] and marker.value["spec"]["clip_bins"] == 2
    low = stored["up"].double() @ stored["down"].double() if rank else 0
    meant = store.weights[FIRST].double() - low
    held = assert_nearest(stored, meant.float(), 4).double()
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


@pytest.mark.parametrize(
    ("part", "dtype"),
    [({}, torch.float32), ({"rank": 2}, torch.float64), ({"shift_groups": 2}, torch.float32)],
)
def test_a_wide_layers_matrix_is_float32_but_beside_a_branch(
    part: dict[str, Any], dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch takes the matrix's small directions too."""
    monkeypatch.setattr(gptq, "VERY_WIDE", 1)
    store, worker = solved(tmp_path, monkeypatch, {"method": "rtn", "solver": "gptq", **part})
    assert worker._latest is not None and worker._latest[1].gram_II.dtype == dtype
    assert 0 < layer_unit(store)[0].value["error"] < 1
