"""The search of group sizes: each size's error on calibration rows, and the choice of least error under the mean."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from adatsq_pipe.stages.methods._recipe import Recipe, resolve
from adatsq_pipe.stages.weights import group_search
from adatsq_pipe.stages.weights.solve import STAGE
from adatsq_pipe.stages.weights.solve_worker import Solve
from adatsq_pipe.storage import tensors
from tests.support import slow_math
from tests.support.made_context import FIRST, MODULATION, SECOND
from tests.support.made_store import MadeStore, make_store
from tests.support.two_layer_denoiser import TwoLayerDenoiser

RECIPE = {"method": "q_dit", "group_search": [4, 16], "weight_group": 8, "activation_group": 8, "weight_bits": 3}


@pytest.fixture
def solving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[MadeStore, Solve]:
    store = make_store(tmp_path, recipe={**RECIPE, "conditioning_group": 0})
    denoiser = TwoLayerDenoiser().install(monkeypatch)
    for name, weight in store.weights.items():
        denoiser.transformer.get_submodule(name).weight.data.copy_(weight)
    store.write_survey()
    store.write_activations()
    store.write_grams()
    return store, Solve(store.context)


def _commit_errors(store: MadeStore, errors: dict[str, dict[str, float]]) -> None:
    for name, by_size in errors.items():
        store.manifest("solve").open_unit(f"sizes/{name}")
        store.manifest("solve").commit(f"sizes/{name}", value=by_size)


@pytest.mark.parametrize("kept", [512, 10])
def test_errors_are_those_of_rounding_weight_and_tokens_in_groups(
    kept: int, solving: tuple[MadeStore, Solve], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer rows wanted than there are, every so many count: 36 rows, 10 wanted, each third."""
    monkeypatch.setattr(group_search, "ROWS", kept)
    store, worker = solving
    worker(f"sizes/{FIRST}")
    errors = store.context.read("solve", f"sizes/{FIRST}")[0].value
    x = torch.cat([store.rows[FIRST][:, step].flatten(0, 1) for step in range(3)]).double()
    assert len(x) == 36
    x = x[:: 1 if kept == 512 else 3]
    w = store.weights[FIRST]
    assert list(errors) == ["4", "8", "16"]
    for size in (4, 8, 16):
        parts = []
        for part in w.split(size, 1):
            low, high = part.amin(1, keepdim=True).clamp(max=0), part.amax(1, keepdim=True).clamp(min=0)
            scale = (high - low) / 7
            zero = torch.round(-low / scale)
            parts.append((slow_math.codes_of(part, scale, zero, 3) - zero) * scale)
        off = slow_math.token_rounded(x, 4, group=size) @ torch.cat(parts, 1).double().T - x @ w.double().T
        right = float(off.square().sum() / (x @ w.double().T).square().sum())
        assert errors[str(size)] == pytest.approx(right, rel=1e-4)


def test_the_choice_is_the_least_error_whose_mean_size_is_allowed(solving: tuple[MadeStore, Solve]) -> None:
    """FIRST gains most by small groups; SECOND's have to be large then, for the mean to stay at 8 channels or more."""
    store, worker = solving
    errors = {
        FIRST: {"4": 0.1, "8": 0.5, "16": 0.9},
        SECOND: {"4": 0.25, "8": 0.3, "16": 0.4},
    }
    _commit_errors(store, errors)
    worker("choice")
    allowed = [(a, b) for a, b in product((4, 8, 16), repeat=2) if (a + b) / 2 >= 8]
    best = min(allowed, key=lambda pair: errors[FIRST][str(pair[0])] + errors[SECOND][str(pair[1])])
    assert best == (4, 16)
    assert store.context.read("solve", "choice")[0].value == {FIRST: 4, SECOND: 16}


def test_layers_are_solved_in_the_chosen_groups(solving: tuple[MadeStore, Solve]) -> None:
    store, worker = solving
    store.manifest("solve").open_unit("choice")
    store.manifest("solve").commit("choice", value={FIRST: 4, SECOND: 16})
    for name, size in ((FIRST, 4), (SECOND, 16), (MODULATION, 0)):
        worker(f"layer/{name}")
        marker, folder = store.context.read("solve", f"layer/{name}")
        spec, stored = marker.value["spec"], tensors.read(folder)
        assert (spec["group"], spec.get("activation_group", 0)) == (size, size)
        scale, _ = slow_math.grid(store.weights[name], 4 if name == MODULATION else 3, group=size)
        assert torch.equal(stored["scale"].float(), scale)


def test_errors_and_the_choice_come_before_the_layers(solving: tuple[MadeStore, Solve]) -> None:
    """Two layers of tokens are searched, the modulation is not: 2 + 1 + 3 units."""
    assert STAGE.expected(solving[0].context) == 6


def _recipe(**changes: object) -> Recipe:
    return resolve({"method": "q_dit", **changes})


def test_sizes_are_divisors_of_the_width_and_stand_for_what_does_not_divide_it() -> None:
    assert group_search.sizes(_recipe(), 3072) == [32, 64, 128, 192, 256]
    assert group_search.sizes(_recipe(), 96) == [32, 48, 96]
    assert group_search.sizes(_recipe(group_search=(4, 5), weight_group=6), 10) == [2, 5]
