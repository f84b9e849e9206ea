"""The search's worker on the fake denoiser, against plain torch that rounds one sample after another."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.allocation.batch_slices import unit_name
from adatsq_pipe.stages.allocation.rollout import BeamWorker
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.denoiser.conditions import calibration_shards
from adatsq_pipe.storage import tensors
from tests.support.made_store import MadeStore, make_store
from tests.support.plain_network import seed_of
from tests.support.plain_rounding import full_precision, step_of, with_weights
from tests.support.two_layer_denoiser import TwoLayerDenoiser

PROMPTS = ["a red circle", "a blue square", "two crosses", "a white star"]
WHOLE = (16, 16, 16)
CANDIDATES = ((0.0, 0.0), (1.0, 1.0), (2.0, 0.0))
ROWS = [[(4, 4, 16)] * 3, [(8, 4, 16), (4, 4, 16), (3, 4, 16)], [(4, 4, 16), (4, 4, 16), (3, 8, 16)]]
"""Bits of every layer by candidate and step, as they follow from the scores and the budget below."""


class Made:
    """A store with solved layers, a denoiser that workers open, and the two networks in plain torch."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, guided: bool, **search: Any) -> None:
        self.guided, self.patch = guided, monkeypatch
        asked = {"candidates": CANDIDATES, "budget": 4.5, **search}
        calls = (0, 0, 1, 1, 2, 2) if guided else (0, 1, 2)
        self.store: MadeStore = make_store(folder, calls=calls, data={"prompts": PROMPTS}, search=asked)
        scores = torch.tensor([[5.0, 3.0, 0.0], [1.0, 0.5, 0.0], [0.1, 2.0, 0.0]]).double()
        self.store.scores = scores.expand(2, 3, 3)
        self.store.write_survey()
        self.store.write_scores()
        values = self.store.write_layers()
        denoiser = TwoLayerDenoiser(guided=guided)
        self.net = full_precision(self.store, denoiser)
        self.solved = with_weights(self.net, values)
        for batch, captions in enumerate(calibration_shards(self.store.context)):
            run = denoiser.record(captions)
            self.store.write_trajectory(batch, torch.stack(run.outputs), run.latents)

    def open(self) -> tuple[BeamWorker, list[int]]:
        """A worker with a denoiser of its own, and the steps of the calls that it makes."""
        denoiser, steps = TwoLayerDenoiser(guided=self.guided), list[int]()
        full_precision(self.store, denoiser)
        real = denoiser.run

        def run(call: Any, around: Any = None) -> Tensor:
            steps.append(call.step)
            return real(call)

        denoiser.run = run  # type: ignore[method-assign]
        denoiser.install(self.patch)
        return BeamWorker(self.store.context), steps

    def walk(self, caption: int, path: tuple[int, ...] | None) -> tuple[list[list[Tensor]], list[Tensor]]:
        """(outputs by step, states before every step and at the end) of a caption; no path is full precision."""
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed_of(3, caption)))
        outputs, states = list[list[Tensor]](), [x]
        for step in range(3 if path is None else len(path)):
            bits = WHOLE if path is None else ROWS[path[step]][step]
            net = self.net if path is None else self.solved
            made, x = step_of(net, x, step, PROMPTS[caption], bits, guided=self.guided)
            outputs.append(made)
            states.append(x)
        return outputs, states

    def relative(self, pairs: list[tuple[Tensor, Tensor]]) -> float:
        """|got - wanted|^2 / |wanted|^2 over all pairs together."""
        off = sum(float((got - wanted).double().square().sum()) for got, wanted in pairs)
        return off / sum(float(wanted.double().square().sum()) for _, wanted in pairs)

    def error(self, path: tuple[int, ...], captions: list[int], kind: str) -> float:
        """The error of the path's last step on the captions, which run together."""
        runs = [(self.walk(i, path), self.walk(i, None)) for i in captions]
        last = len(path) - 1
        if kind == "state":
            return self.relative([(got[1][last + 1], wanted[1][last + 1]) for got, wanted in runs])
        calls = 2 if self.guided else 1
        each = [self.relative([(g[0][last][j], w[0][last][j]) for g, w in runs]) for j in range(calls)]
        return sum(each) / calls


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", ["state", "output"])
def test_an_extension_s_error_is_that_of_its_own_step(
    kind: str, guided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, monkeypatch, guided=guided, error=kind)
    worker, _ = made.open()
    assert worker.space.policies == [tuple(row[:2] for row in rows) for rows in ROWS]
    for path in ((1,), (2,), (1, 0), (1, 0, 2), (1, 0, 1)):
        wanted = made.error(path, [0, 1], kind)
        assert worker(f"path/{'.'.join(map(str, path))}/0") == pytest.approx(wanted, rel=1e-3)
        assert wanted > 1e-3, "there is an error to see"
        unit = made.store.manifest("search").read(unit_name("path", path, 0))
        assert unit.value["choices"] == list(path) and unit.value["error"] == pytest.approx(wanted, rel=1e-3)
        assert (unit.value["calls"], unit.value["samples"]) == (2 if guided else 1, 2)
        stored = tensors.read_scratch(made.store.manifest("search").local_folder(unit.unit))["output0"]
        outputs = [made.walk(i, path)[0][-1] for i in (0, 1)]
        for j in range(unit.value["calls"]):
            torch.testing.assert_close(stored[j], torch.stack([out[j] for out in outputs]), rtol=1e-3, atol=1e-3)


def test_a_portion_of_the_captions_has_their_error_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, monkeypatch, guided=False, samples=1, batches=2)
    worker, _ = made.open()
    for place in range(4):
        wanted = made.error((1, 2), [place], "state")
        assert worker(f"path/1.2/{place}") == pytest.approx(wanted, rel=1e-3)
        unit = made.store.manifest("search").read(unit_name("path", (1, 2), place))
        assert unit.value["samples"] == 1


@pytest.mark.parametrize("guided", [False, True])
def test_another_worker_reads_the_path_so_far_and_computes_only_the_step(
    guided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, monkeypatch, guided=guided)
    first, steps = made.open()
    first("path/1/0")
    first("path/1.2/0")
    calls = 2 if guided else 1
    assert steps == [0] * calls + [1] * calls
    second, steps = made.open()
    assert second("path/1.2.1/0") == pytest.approx(made.error((1, 2, 1), [0, 1], "state"), rel=1e-3)
    assert steps == [2] * calls
    third, steps = made.open()
    manifest = made.store.manifest("search")
    for path in ((1,), (1, 2)):
        manifest.discard(unit_name("path", path, 0))
    assert third("path/1.2.0/0") == pytest.approx(made.error((1, 2, 0), [0, 1], "state"), rel=1e-3)
    assert steps == [t for t in range(3) for _ in range(calls)], "what nobody keeps is computed again"
    assert manifest.done(unit_name("path", (1, 2), 0))


def test_a_worker_keeps_paths_of_this_level_and_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, monkeypatch, guided=False)
    worker, _ = made.open()
    for key in ("path/0/0", "path/1/0", "path/0.1/0", "path/1.1/0", "path/1.1.0/0"):
        worker(key)
    reference = worker._references[0]
    assert set(reference.outputs) == {(0, 1), (1, 1), (1, 1, 0)} == set(reference.arrived)


@pytest.mark.parametrize("guided", [False, True])
def test_a_rollout_follows_the_policy_and_its_error_is_the_mean_logarithm(
    guided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, monkeypatch, guided=guided)
    worker, steps = made.open()
    path = (1, 0, 2)
    logs = []
    for caption in (2, 3):
        got, wanted = made.walk(caption, path)[1][-1], made.walk(caption, None)[1][-1]
        logs.append(math.log(made.relative([(got, wanted)])))
    assert worker("rollout/1.0.2/0") == pytest.approx(sum(logs) / 2, rel=1e-3)
    calls = 6 if guided else 3
    assert len(steps) == calls
    value = made.store.manifest("search").read(unit_name("rollout", path, 0)).value
    assert value == {
        "choices": [1, 0, 2],
        "error": pytest.approx(sum(logs) / 2, rel=1e-3),
        "calls": calls,
        "samples": 2,
    }


def test_a_rollout_of_fewer_captions_is_compared_with_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, monkeypatch, guided=False, rollout_prompts=1)
    worker, _ = made.open()
    got, wanted = made.walk(2, (2, 2, 2))[1][-1], made.walk(2, None)[1][-1]
    assert worker("rollout/2.2.2/0") == pytest.approx(math.log(made.relative([(got, wanted)])), rel=1e-3)


def test_a_portion_that_does_not_give_what_was_recorded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, monkeypatch, guided=False, samples=1)
    manifest, unit = made.store.manifest("capture"), "trajectory/000"
    stored = tensors.read(manifest.local_folder(unit))
    manifest.discard(unit)
    made.store.write_trajectory(0, stored["output0"], stored["latents"].flip(0))
    worker, _ = made.open()
    with pytest.raises(StageError, match=r"captions 1 to 1 of a batch of 2 .* set search\.samples=0"):
        worker("path/1/1")


def test_a_rollout_of_the_weights_alone_rounds_no_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, monkeypatch, guided=False)
    worker, _ = made.open()
    logs = []
    for caption in (2, 3):
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed_of(3, caption)))
        for step in range(3):
            _, x = step_of(made.solved, x, step, PROMPTS[caption], WHOLE, guided=False)
        logs.append(math.log(made.relative([(x, made.walk(caption, None)[1][-1])])))
    worker("rollout/2.2.2/0")
    assert worker("rollout/-1.-1.-1/0") == pytest.approx(sum(logs) / 2, rel=1e-5), "after a policy of fewer bits"
