"""One width a step: every step's error against plain torch that rounds this step alone, and the policy from them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.allocation import search
from adatsq_pipe.stages.allocation.bisection_worker import StepErrors
from adatsq_pipe.stages.denoiser.conditions import calibration_shards
from tests.support.made_executor import TableExecutor
from tests.support.made_store import MadeStore, make_store
from tests.support.plain_network import seed_of
from tests.support.plain_rounding import full_precision, step_of, with_weights
from tests.support.two_layer_denoiser import TwoLayerDenoiser

PROMPTS = ["a red circle", "a blue square", "two crosses", "a white star"]
WIDTHS = (2, 4, 8)
BUDGET = 10 / 3


class Made:
    """A store with solved layers, the fake denoiser that a worker opens, and the networks in plain torch."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, *, guided: bool) -> None:
        self.guided, calls = guided, (0, 0, 1, 1, 2, 2) if guided else (0, 1, 2)
        self.store: MadeStore = make_store(
            folder,
            calls=calls,
            data={"prompts": PROMPTS},
            recipe={"method": "tmpdiff"},
            search={"bits": WIDTHS, "budget": BUDGET},
        )
        self.store.write_survey()
        values = self.store.write_layers()
        denoiser = TwoLayerDenoiser(guided=guided)
        self.net = full_precision(self.store, denoiser)
        self.solved = with_weights(self.net, values)
        for batch, captions in enumerate(calibration_shards(self.store.context)):
            run = denoiser.record(captions)
            self.store.write_trajectory(batch, torch.stack(run.outputs), run.latents)
        opened = TwoLayerDenoiser(guided=guided)
        full_precision(self.store, opened)
        opened.install(patch)
        self.steps, real = list[int](), opened.run

        def run_of(call: Any, around: Any = None) -> Tensor:
            self.steps.append(call.step)
            return real(call)

        opened.run = run_of  # type: ignore[method-assign]

    def end(self, caption: int, bits: tuple[int, ...] | None) -> Tensor:
        """The final latents of a caption with these bits by step; None is full precision."""
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed_of(3, caption)))
        for step, width in enumerate(bits or (16, 16, 16)):
            net = self.net if bits is None else self.solved
            x = step_of(net, x, step, PROMPTS[caption], (width, width, 16), guided=self.guided)[1]
        return x.double()

    def error(self, step: int, width: int) -> float:
        """|rounded at this step - not rounded|^2 / |not rounded|^2, over the captions of the first batch."""
        alone = tuple(width if t == step else 16 for t in range(3))
        pairs = [(self.end(i, alone), self.end(i, (16, 16, 16))) for i in (0, 1)]
        return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs))


@pytest.mark.parametrize("guided", [False, True])
def test_the_policy_is_the_best_by_the_errors_of_single_steps(
    guided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, monkeypatch, guided=guided)
    manifest, worker = made.store.manifest("search"), StepErrors(made.store.context)
    wanted = [[made.error(step, width) for width in WIDTHS] for step in range(3)]
    made.steps.clear()
    for step in (1, 0, 2):
        worker(f"step/{step:04d}")
        unit = manifest.read(f"step/{step:04d}")
        assert unit.value == {"errors": pytest.approx(wanted[step], rel=2e-3)}
        assert unit.calls == len(WIDTHS) * (3 - step) * (2 if guided else 1)
    calls = 2 if guided else 1
    assert len(made.steps) == calls * (3 + len(WIDTHS) * (3 + 2 + 1)), "calls before a step are made once"
    policies = [p for p in itertools.product(WIDTHS, repeat=3) if sum(p) <= 3 * BUDGET + 1e-9]
    best = min(policies, key=lambda p: sum(wanted[t][WIDTHS.index(b)] for t, b in enumerate(p)))
    worker("rollout/policy")
    rollout = manifest.read("rollout/policy").value
    assert (rollout["calls"], rollout["samples"]) == (3 * calls, 2), "what the costs in the report rest on"
    executor = TableExecutor(lambda path, place: 0.0, lambda path, place: 0.0, [])
    search.run(made.store.context, executor, lambda done, of: None)
    value = manifest.read("front").value
    assert value["policy"] == [[bits, bits, 16] for bits in best] and len(set(best)) > 1
    assert value["mean_bits"] == pytest.approx(sum(best) / 3)
    logs = [math.log(_off(made.end(i, best), made.end(i, None))) for i in (2, 3)]
    assert value["rollout_error"] == pytest.approx(math.exp(sum(logs) / 2), rel=1e-3)
    assert search.STAGE.expected(made.store.context) == len(list(manifest.units()))


def _off(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).square().sum() / wanted.square().sum())
