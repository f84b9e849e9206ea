"""Solved layers in a transformer: each computes with its own codes, and rounds its input at its own policy's bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adatsq_pipe.stages.allocation.front import policy_of
from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.weights.solve_worker import Solve
from adatsq_pipe.stages.weights.solved import load_solved
from adatsq_pipe.storage import tensors
from tests.support import slow_math
from tests.support.made_context import FIRST, MODULATION, SECOND
from tests.support.made_store import make_store
from tests.support.two_layer_denoiser import TwoLayerDenoiser


def test_layers_hold_codes_times_scale_and_their_column_of_the_policy(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.write_survey()
    store.write_front()
    held = store.write_layers(bits=3)
    model = TwoLayerDenoiser().parts["transformer"]
    biases = {name: model.get_submodule(name).bias.detach().clone() for name in store.names}
    layers = load_solved(store.context, model, policy_of(store.context))
    assert list(layers) == [FIRST, SECOND, MODULATION]
    for place, (name, layer) in enumerate(layers.items()):
        assert model.get_submodule(name) is layer
        assert torch.equal(layer.dequantized(torch.float32).weight, held[name])
        assert torch.equal(layer.bias, biases[name])
        assert layer.policy.tolist() == [store.bits[step][place] for step in range(3)]
    assert not isinstance(model.proj_out, QuantizedLinear)


def test_a_rotated_and_smoothed_layer_gives_what_its_rounded_input_and_codes_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x is smoothed, rotated and rounded at the step's bits, token by token; the weight is codes times scale."""
    recipe = {"method": "smoothquant", "transform": "hadamard", "transform_block": 8, "solver": "gptq"}
    store = make_store(tmp_path, recipe=recipe | {"conditioning_group": 0})
    denoiser = TwoLayerDenoiser().install(monkeypatch)
    store.write_survey()
    store.write_activations()
    store.write_grams()
    store.write_front()
    worker = Solve(store.context)
    for name in store.names:
        worker(f"layer/{name}")
    model = denoiser.parts["transformer"]
    bias = model.get_submodule(FIRST).bias.detach().double()
    layer = load_solved(store.context, model, policy_of(store.context))[FIRST]
    stored = tensors.read(store.context.read("solve", f"layer/{FIRST}")[1])
    x = store.rows[FIRST][0, 0]
    for step in range(3):
        layer.bits = int(layer.policy[step])
        turned = slow_math.rotated(x.double() * stored["smooth"].double(), 8)
        rounded = slow_math.token_rounded(turned, store.bits[step][0])
        weight = slow_math.values(stored["codes"], stored["scale"], stored["zero"])
        assert torch.allclose(layer(x).double(), rounded @ weight.T + bias, atol=1e-4)
