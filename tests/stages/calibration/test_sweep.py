"""End-to-end effects against autograd through the whole run, unrolled in plain torch."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.calibration.effects import WIDTHS, effects_of, is_end_to_end, obstacle_of, sweep_units
from adatsq_pipe.stages.calibration.scores import fisher_scores
from adatsq_pipe.stages.calibration.sweep_worker import Sweep
from adatsq_pipe.stages.calibration.unit_keys import DIFFERENTIABLE
from adatsq_pipe.stages.numerics.greedy import dual_rotation
from tests.stages.calibration.test_fisher import _captured, _net
from tests.support import slow_math
from tests.support.made_context import FIRST, MODULATION, SECOND, SHAPES, TOKENS
from tests.support.made_store import MadeStore
from tests.support.plain_network import OneCall, output_of, seed_of
from tests.support.two_layer_denoiser import TwoLayerDenoiser, TwoLayers, condition_of

RECIPE: dict[str, Any] = {"method": "endpoint", "conditioning_group": 0}
STEPS = 3


Called = tuple[OneCall, dict[str, Tensor]]
"""A call, and the zeros that were added to the layers' outputs."""


def _unrolled(net: TwoLayers, prompt: str, seed: int, guided: bool) -> tuple[list[Called], Tensor]:
    """One sample's run with its graph: (its calls, its final latents)."""
    x = torch.randn(TOKENS, 16, generator=torch.Generator().manual_seed(seed))
    calls = list[Called]()
    for step in range(STEPS):
        outputs = []
        for text in [prompt, ""] if guided else [prompt]:
            call = OneCall(x, 1000.0 - 300 * step, condition_of(text))
            rows = {FIRST: TOKENS, SECOND: TOKENS, MODULATION: 1}
            added = {name: torch.zeros(rows[name], SHAPES[name][0], requires_grad=True) for name in SHAPES}
            calls.append((call, added))
            outputs.append(output_of(net, call, added)[0])
        v = outputs[1] + 2 * (outputs[0] - outputs[1]) if guided else outputs[0]
        x = x - v / STEPS
    return calls, x


def _weight_error(w: Tensor, turn: Tensor) -> Tensor:
    """Rounding to nearest at 4 bits less the weight, in the basis of the codes."""
    w = w.double() @ turn
    scale, zero = slow_math.grid(w, 4, clip=True)
    return slow_math.values(slow_math.codes_of(w, scale, zero, 4), scale, zero).double() - w


def _direction(store: MadeStore, batch: int, draw: int, samples: int) -> Tensor:
    state = int(np.random.SeedSequence((7, draw, batch)).generate_state(1)[0])
    return torch.randn(samples, TOKENS, 16, generator=torch.Generator().manual_seed(state))


def _store(folder: Path, denoiser: TwoLayerDenoiser, patch: pytest.MonkeyPatch, **more: Any) -> MadeStore:
    store = _captured(folder, denoiser, patch, recipe={**RECIPE, **more}, fisher={"draws": 2, "seed": 7})
    return store


Turn = tuple[Tensor, Tensor, Tensor]
"""What is subtracted from a layer's input at each step, [steps, in], what it is multiplied by then, [in, in], and what
the weight is multiplied by, the transposed inverse."""
GREEDY = {"transform": "greedy", "transform_block": 8}
ORDERED = {"permuted": True, "smoothing": "smoothquant"}
SHIFTED = {"shift_groups": STEPS}


def _turn(store: MadeStore, name: str, w: Tensor, recipe: dict[str, Any]) -> Turn:
    still, eye = torch.zeros(STEPS, 16, dtype=torch.float64), torch.eye(16, dtype=torch.float64)
    if name == MODULATION:
        return still[:, :8], eye[:8, :8], eye[:8, :8]
    places = [[call for call, at in enumerate(store.calls) if at == step] for step in range(STEPS)]
    steps = [store.rows[FIRST][:, calls].flatten(0, -2) for calls in places]
    if recipe == GREEDY:
        turns, order = dual_rotation(torch.cat(steps), block=8, steps=256, seed=zlib.crc32(FIRST.encode()))
        first, second = (torch.block_diag(turn, turn) for turn in turns.double())
        return still, first[:, order.long()] @ second, first[:, order.long()] @ second
    shift, peaks = still, store.peaks[FIRST].flatten(0, -2).amax(0)
    if "shift_groups" in recipe:
        shift = torch.stack([(x.amax(0) + x.amin(0)) / 2 for x in steps]).bfloat16().double()
        peaks = torch.stack([(x - z).abs().amax(0) for x, z in zip(steps, shift.float(), strict=True)]).amax(0)
    into, of_weight = eye, eye
    if "permuted" in recipe:
        order = np.random.default_rng(list(name.encode())).permutation(16)
        smooth = (w.double().abs().amax(0) / peaks.double()).sqrt().bfloat16().double()[order]
        into, of_weight = eye[:, order] * smooth, eye[:, order] / smooth
    return shift, into @ slow_math.hadamard(16), of_weight @ slow_math.hadamard(16)


@pytest.mark.parametrize(
    ("guided", "size", "recipe"),
    [
        (False, None, {}),
        (True, None, {}),
        (False, 1, {}),
        (True, 1, {}),
        (False, None, GREEDY),
        (False, None, SHIFTED),
        (False, None, ORDERED),
        (True, 1, ORDERED | SHIFTED),
    ],
    ids=[
        "one call a step",
        "two calls a step",
        "one sample at a time",
        "two calls, one sample",
        "greedy rotations",
        "a shift by step",
        "ordered and smoothed",
        "two calls, one sample, shifted, ordered and smoothed",
    ],
)
def test_stored_effects_are_those_of_autograd_through_the_unrolled_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guided: bool, size: int | None, recipe: dict[str, Any]
) -> None:
    denoiser = TwoLayerDenoiser(guided=guided)
    store, net = _store(tmp_path, denoiser, monkeypatch, **recipe), _net(denoiser)
    weights = {name: dict(net.named_parameters())[f"{name}.weight"].detach() for name in SHAPES}
    store.write_activations()
    turns = {name: _turn(store, name, weights[name], recipe) for name in SHAPES}
    worker = Sweep(store.context)
    worker.micro.size = size
    worker.denoiser.micro = worker.micro
    for unit in [DIFFERENTIABLE, *sweep_units(store.context)]:
        worker(unit)
    assert is_end_to_end(store.context)
    found = effects_of(store.context)
    assert found.activations.shape == (8, STEPS, 3, len(WIDTHS)) and found.weights.shape == (8, STEPS, 3)
    prompts, at = store.context.settings[DataSettings].prompts, 0
    errors = {name: _weight_error(weights[name], turns[name][2]) for name in SHAPES}
    for batch in range(2):
        for draw in range(2):
            directions = _direction(store, batch, draw, 2)
            for sample in range(2):
                caption = 2 * batch + sample
                calls, latents = _unrolled(net, prompts[caption], seed_of(3, caption), guided)
                (directions[sample] * latents).sum().backward()
                assert found.latents[at] == pytest.approx(float(latents.detach().double().square().sum()), rel=1e-4)
                for step in range(STEPS):
                    here = calls[2 * step : 2 * step + 2] if guided else calls[step : step + 1]
                    for layer, name in enumerate(SHAPES):
                        of_weight, of_tokens = 0.0, np.zeros(len(WIDTHS))
                        for call, added in here:
                            g, x = added[name].grad.double(), call.inputs()[name].double()
                            shift, into, of_weights = turns[name]
                            turned = (x.detach() - shift[step]) @ into
                            of_weight += float((g * (turned.detach() @ errors[name].T)).sum())
                            if name == MODULATION:
                                continue
                            towards = g @ weights[name].double() @ of_weights
                            for k, bits in enumerate(WIDTHS):
                                rounded = slow_math.token_rounded(turned, bits)
                                of_tokens[k] += float((towards * (rounded - turned)).sum())
                        size_of = np.abs(found.weights[:, step, layer]).max()
                        assert found.weights[at, step, layer] == pytest.approx(of_weight, rel=1e-3, abs=1e-4 * size_of)
                        scale = np.abs(found.activations[:, step, layer]).max() or 1.0
                        np.testing.assert_allclose(
                            found.activations[at, step, layer], of_tokens, rtol=1e-3, atol=2e-4 * scale
                        )
                at += 1
    wanted = np.pi / 2 * np.abs(found.weights).mean(0) ** 2
    np.testing.assert_allclose(fisher_scores(store.context), wanted)


def test_a_loop_that_cuts_the_gradient_off_is_an_obstacle_that_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = TwoLayerDenoiser()
    store, real = _store(tmp_path, denoiser, monkeypatch), denoiser.loop
    monkeypatch.setattr(denoiser, "loop", lambda *args: real(*args).detach())
    Sweep(store.context)(DIFFERENTIABLE)
    assert "cuts the final latents off" in obstacle_of(store.context) and not is_end_to_end(store.context)
    monkeypatch.setattr(denoiser, "loop", lambda *args: torch.from_numpy(real(*args).numpy()))
    store.context.manifest("fisher").discard(DIFFERENTIABLE)
    Sweep(store.context)(DIFFERENTIABLE)
    assert "numpy" in obstacle_of(store.context)
