"""The Fisher stage against gradients that torch.autograd takes of one sample at a time, by the weights themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.calibration.fisher_worker import Fisher
from adatsq_pipe.stages.calibration.scores import curvature_of
from adatsq_pipe.stages.calibration.trajectories import write_trajectory
from adatsq_pipe.stages.denoiser.conditions import calibration_shards
from adatsq_pipe.storage import arrays, tensors
from tests.support import two_layer_denoiser
from tests.support.made_context import FIRST, MODULATION, SHAPES, TOKENS
from tests.support.made_store import MadeStore, make_store
from tests.support.plain_network import OneCall, output_of, run_of, seed_of
from tests.support.two_layer_denoiser import TwoLayerDenoiser, TwoLayers

Calls = list[list[OneCall]]
"""[sample of a batch][call of its run]"""


def _captured(folder: Path, denoiser: TwoLayerDenoiser, patch: pytest.MonkeyPatch, **overrides: Any) -> MadeStore:
    """A store with the fake denoiser's runs and survey, as capture leaves them."""
    calls = tuple(step for step in range(3) for _ in range(2 if denoiser.guided else 1))
    store = make_store(folder, calls=calls, **overrides)
    denoiser.install(patch)
    store.write_survey()
    manifest = store.manifest("capture")
    for batch, conditions in enumerate(calibration_shards(store.context)):
        unit, run = f"trajectory/{batch:03d}", denoiser.record(conditions)
        write_trajectory(manifest.open_unit(unit), run)
        manifest.commit(unit, value={"calls": len(run.outputs), "samples": len(conditions.prompts)})
    return store


def _runs(store: MadeStore, net: TwoLayers, batch: int, *, guided: bool = False) -> Calls:
    data = store.context.settings[DataSettings]
    captions = list(enumerate(data.prompts))[batch * data.batch : (batch + 1) * data.batch]
    return [run_of(net, prompt, seed_of(data.seed, i), guided=guided)[0] for i, prompt in captions]


def _noise(seed: tuple[int, ...], samples: int) -> Tensor:
    """The noise of one call, [samples, TOKENS, WIDTH], of a seed that is free in every part."""
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return torch.randn(samples, TOKENS, 16, generator=torch.Generator().manual_seed(state))


def _score(net: TwoLayers, calls: list[OneCall], noise: Tensor, name: str) -> float:
    """Mean squared derivative, by the entries of a weight, of sum(-noise x output) over samples."""
    weight = dict(net.named_parameters())[f"{name}.weight"]
    total = torch.zeros_like(weight, dtype=torch.float64)
    for call, n in zip(calls, noise, strict=True):
        output, _ = output_of(net, call)
        total += torch.autograd.grad((-n * output).sum(), weight)[0].double()
    return float((total**2).mean())


def _scores_of(store: MadeStore, unit: str) -> tuple[Tensor, dict[str, Any]]:
    _, folder = store.context.read("fisher", unit)
    return tensors.read(folder, ["scores"])["scores"], arrays.attributes(folder)


def _net(denoiser: TwoLayerDenoiser) -> TwoLayers:
    """Its network in a copy whose weights take gradients; the stage needs none of the model's."""
    copy = TwoLayers()
    copy.load_state_dict(denoiser.transformer.state_dict())
    return copy


@pytest.mark.parametrize("guided", [False, True], ids=["one call a step", "two calls a step"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_scores_are_squared_weight_gradients_over_draws_and_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guided: bool, again: bool
) -> None:
    denoiser = TwoLayerDenoiser(guided=guided)
    changes = {"draws": 2, "seed": 5, "gradient_checkpointing": again}
    store, net = _captured(tmp_path, denoiser, monkeypatch, fisher=changes), _net(denoiser)
    worker, per_step = Fisher(store.context), 2 if guided else 1
    for block, steps in enumerate([range(2), range(2, 3)]):
        for batch in range(2):
            worker(f"scores/{block:03d}-{batch:03d}")
            found, marks = _scores_of(store, f"scores/{block:03d}-{batch:03d}")
            assert found.shape == (len(steps), 3) and (marks["start"], marks["stop"]) == (steps.start, steps.stop)
            runs = _runs(store, net, batch, guided=guided)
            for step in steps:
                for layer, name in enumerate(SHAPES):
                    wanted = 0.0
                    for j in range(step * per_step, (step + 1) * per_step):
                        for draw in range(2):
                            wanted += _score(net, [run[j] for run in runs], _noise((5, draw, batch, j), 2), name)
                    assert found[step - steps.start, layer].item() == pytest.approx(wanted / (2 * 2), rel=1e-4)


def test_over_many_draws_scores_are_the_mean_over_samples_of_the_exact_fisher_information(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exact one, for one sample: the sum over all numbers of the output of their squared derivatives."""
    denoiser = TwoLayerDenoiser()
    store = _captured(tmp_path, denoiser, monkeypatch, fisher={"draws": 60}, capture={"block": 1})
    Fisher(store.context)("scores/001-001")
    found, net, exact = _scores_of(store, "scores/001-001")[0][0], _net(denoiser), torch.zeros(3)
    weights = [dict(net.named_parameters())[f"{name}.weight"] for name in SHAPES]
    for run in _runs(store, net, 1):
        for value in output_of(net, run[1])[0].flatten():
            gradients = torch.autograd.grad(value, weights, retain_graph=True)
            exact += torch.stack([(gradient**2).mean() for gradient in gradients])
    torch.testing.assert_close(found.float(), exact / 2, rtol=0.25, atol=0)


def test_a_batch_that_is_cut_gives_the_sum_over_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = TwoLayerDenoiser()
    store, net = _captured(tmp_path, denoiser, monkeypatch, recipe=BY_CHANNEL), _net(denoiser)
    worker = Fisher(store.context)
    worker.micro.size = 1
    worker("scores/001-000")
    found, runs = _scores_of(store, "scores/001-000")[0], _runs(store, net, 0)
    noises = [_noise((0, 0, 0, 2), 1), _noise((0, 0, 0, 2, 1), 1)]
    for layer, name in enumerate(SHAPES):
        parts = [_score(net, [run[2]], noise, name) for run, noise in zip(runs, noises, strict=True)]
        assert found[0, layer].item() == pytest.approx(sum(parts) / 2, rel=1e-4)
    curvature = _curvature(net, [run[2] for run in runs], torch.cat(noises), FIRST)
    _, folder = store.context.read("fisher", "scores/001-000")
    stored = tensors.read(folder, [f"curvature:{FIRST}"])[f"curvature:{FIRST}"]
    torch.testing.assert_close(stored[0].double(), curvature, rtol=1e-4, atol=0)


BY_CHANNEL = {"method": "tq_dit"}
"""A recipe whose activation scales are searched under the loss's curvature."""


def _curvature(net: TwoLayers, calls: list[OneCall], noise: Tensor, name: str) -> Tensor:
    """Mean over tokens of the squared derivative by a layer's outputs, [out]."""
    squares = list[Tensor]()
    for call, n in zip(calls, noise, strict=True):
        added = torch.zeros(len(call.inputs()[name]), SHAPES[name][0], requires_grad=True)
        output, _ = output_of(net, call, {name: added})
        squares += list(torch.autograd.grad((-n * output).sum(), added)[0].double() ** 2)
    return torch.stack(squares).mean(0)


def test_the_curvature_of_a_channel_is_its_mean_squared_output_gradient_at_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = TwoLayerDenoiser()
    store, net = _captured(tmp_path, denoiser, monkeypatch, recipe=BY_CHANNEL), _net(denoiser)
    worker = Fisher(store.context)
    for unit in ("000-000", "000-001", "001-000", "001-001"):
        worker(f"scores/{unit}")
    runs = [_runs(store, net, batch) for batch in range(2)]
    for name in SHAPES:
        found = curvature_of(store.context, name)
        for step in range(3):
            each = [_curvature(net, [r[step] for r in runs[b]], _noise((0, 0, b, step), 2), name) for b in range(2)]
            np.testing.assert_allclose(found[step], (each[0] + each[1]).numpy(), rtol=1e-4)


def test_a_batch_with_fewer_captions_is_divided_by_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = TwoLayerDenoiser()
    data = {"prompts": ["a red circle", "a blue square", "two crosses"]}
    store, net = _captured(tmp_path, denoiser, monkeypatch, data=data), _net(denoiser)
    Fisher(store.context)("scores/000-001")
    found, (run,) = _scores_of(store, "scores/000-001")[0], _runs(store, net, 1)
    for step in range(2):
        for layer, name in enumerate(SHAPES):
            wanted = _score(net, [run[step]], _noise((0, 0, 1, step), 1), name)
            assert found[step, layer].item() == pytest.approx(wanted, rel=1e-4)


def test_the_error_for_a_gradient_that_is_not_finite_names_its_layer_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite condition saturates the gate: outputs stay finite, and 0 x infinity is the modulation's alone."""
    monkeypatch.setattr(two_layer_denoiser, "condition_of", lambda prompt: torch.tensor([float("inf")] + [0.0] * 7))
    store = _captured(tmp_path, TwoLayerDenoiser(), monkeypatch)
    worker = Fisher(store.context)
    with pytest.raises(
        StageError, match=rf"layer {MODULATION} at step 2 \(timestep 400\); set compute.dtype to float32"
    ):
        worker("scores/001-000")
    assert not store.manifest("fisher").done("scores/001-000")


def test_without_a_search_by_channel_no_curvature_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _captured(tmp_path, TwoLayerDenoiser(), monkeypatch)
    Fisher(store.context)("scores/001-000")
    assert list(tensors.read(store.context.read("fisher", "scores/001-000")[1])) == ["scores"]
