"""Bits by layer and kind: sensitivities against plain torch, the allocation against every possible one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.allocation import search
from adatsq_pipe.stages.allocation.decoupled import kind_of
from adatsq_pipe.stages.allocation.decoupled_worker import Sensitivity
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.denoiser.conditions import calibration_shards
from tests.support.made_context import FIRST, MODULATION
from tests.support.made_store import MadeStore, make_store
from tests.support.plain_network import OneCall, run_of, seed_of
from tests.support.plain_rounding import full_precision, rounded_output, with_weights
from tests.support.two_layer_denoiser import TwoLayerDenoiser

PROMPTS = ["a red circle", "a blue square", "two crosses", "a white star"]
RECIPE = {"method": "vidit_q"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blocks.0.attn2.to_q", "condition"),
        ("blocks.0.attn.add_k_proj", "condition"),
        ("caption_projection.linear_1", "condition"),
        ("blocks.0.attn1.to_q", "attention"),
        ("blocks.0.attention.qkv", "attention"),
        ("blocks.0.to_out.0", "attention"),
        ("blocks.0.ff.net.2", "rest"),
    ],
)
def test_a_layer_s_kind_follows_from_its_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize("guided", [False, True])
def test_a_sensitivity_is_the_output_s_error_with_one_layer_rounded(
    guided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five steps the first, the middle and the last are measured, each on the inputs of the recorded run."""
    calls = [t for t in range(5) for _ in range(2 if guided else 1)]
    store = make_store(tmp_path, calls=calls, data={"prompts": PROMPTS}, recipe=RECIPE, search={"bits": (3, 4)})
    store.write_survey()
    values = store.write_layers()
    recorder = TwoLayerDenoiser(steps=5, guided=guided)
    net = full_precision(store, recorder)
    solved = with_weights(net, values)
    run = recorder.record(calibration_shards(store.context)[0])
    store.write_trajectory(0, torch.stack(run.outputs), run.latents)
    denoiser = TwoLayerDenoiser(steps=5, guided=guided)
    full_precision(store, denoiser)
    denoiser.install(monkeypatch)
    worker = Sensitivity(store.context)
    worker("sensitivity/0001")
    worker("sensitivity/0000")
    walks = [run_of(net, PROMPTS[i], seed_of(3, i), steps=5, guided=guided)[0] for i in (0, 1)]
    chosen = [j for j, step in enumerate(calls) if step in (0, 2, 4)]
    for layer in (0, 1):
        wanted = []
        for bits in (3, 4):
            row = [bits if i == layer else 16 for i in range(3)]
            errors = [_relative(solved, [walk[j] for walk in walks], row) for j in chosen]
            wanted.append(sum(errors) / len(errors))
        unit = store.manifest("search").read(f"sensitivity/{layer:04d}")
        assert unit.value == {"errors": pytest.approx(wanted, rel=1e-3)} and wanted[0] > 2 * wanted[1]
        assert unit.calls == 2 * len(chosen)


def _relative(net: torch.nn.Module, calls: list[OneCall], row: list[int]) -> float:
    """|rounded - not rounded|^2 / |not rounded|^2 of one call's outputs, samples together."""

    def together(bits: list[int]) -> Tensor:
        return torch.stack([rounded_output(net, call, bits) for call in calls]).double()

    got, wanted = together(row), together([16, 16, 16])
    return float((got - wanted).square().sum() / wanted.square().sum())


class TableOfLayers:
    """A fake executor that commits sensitivities from a table."""

    def __init__(self, errors: dict[int, list[float]]) -> None:
        self.errors, self.asked = errors, list[str]()

    def stream(self, worker: type[Any], context: Context, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
        manifest = context.manifest("search")
        for key in keys:
            self.asked.append(key)
            manifest.open_unit(key)
            manifest.commit(key, value={"errors": self.errors[int(key.split("/")[1])]})
            yield key, None

    def coordinate(self, search: Callable[..., None], context: Context, report: Callable[[int, int], None]) -> None:
        raise AssertionError("there is nothing to coordinate")


ERRORS = {0: [9.0, 3.0, 0.1], 1: [8.0, 4.0, 0.2], 3: [0.9, 0.3, 0.01], 4: [0.4, 0.38, 0.02], 5: [0.05, 0.02, 0.001]}
NAMES = ["b.attn1.to_q", "b.attn1.to_v", "b.norm.linear", "b.attn2.to_q", "b.attn2.to_k", "b.ff.net"]
KINDS = {"attention": [0, 1], "condition": [3, 4], "rest": [5]}
MACS = [100, 300, 7, 50, 20, 900]


def _six_layers(folder: Path, budget: float) -> MadeStore:
    store = make_store(folder, recipe=RECIPE, search={"budget": budget})
    rows = [
        {**store.row(FIRST if i != 2 else MODULATION), "name": name, "macs": MACS[i]} for i, name in enumerate(NAMES)
    ]
    store.write_survey(layers=rows)
    return store


@pytest.mark.parametrize("budget", [3.0, 3.5, 4.0, 5.5, 8.0])
def test_every_kind_spends_the_budget_among_its_own_layers(budget: float, tmp_path: Path) -> None:
    store = _six_layers(tmp_path, budget)
    executor = TableOfLayers(ERRORS)
    search.run(store.context, executor, lambda done, of: None)
    assert executor.asked == [f"sensitivity/{i:04d}" for i in (0, 1, 3, 4, 5)], "the layer without bits has none"
    value = store.manifest("search").read("front").value
    row = value["policy"][0]
    assert value["policy"] == [row] * 3 and row[2] == 16
    for members in KINDS.values():
        got = [row[i] for i in members]
        assert sum(got) <= budget * len(got)
        every = [b for b in itertools.product((3, 4, 8), repeat=len(got)) if sum(b) <= budget * len(got)]

        def loss(bits: Iterable[int], members: list[int] = members) -> float:
            return sum(ERRORS[i][(3, 4, 8).index(b)] for i, b in zip(members, bits, strict=True))

        assert loss(got) == pytest.approx(min(map(loss, every)))
    bits = [row[i] for i in ERRORS]
    assert value["mean_bits"] == pytest.approx(sum(bits) / 5)
    macs = [MACS[i] for i in ERRORS]
    weighted = sum(b * m for b, m in zip(bits, macs, strict=True)) / sum(macs)
    assert value["mac_weighted_bits"] == pytest.approx(weighted)
    assert value["kinds"] == {"attention": 2, "condition": 2, "rest": 1}
    assert (value["rollout_error"], value["front"]) == (None, 1)


def test_a_measured_layer_is_not_measured_again(tmp_path: Path) -> None:
    store = _six_layers(tmp_path, 4.0)
    manifest = store.manifest("search")
    for i in (0, 4):
        manifest.open_unit(f"sensitivity/{i:04d}")
        manifest.commit(f"sensitivity/{i:04d}", value={"errors": ERRORS[i]})
    executor = TableOfLayers(ERRORS)
    search.run(store.context, executor, lambda done, of: None)
    assert executor.asked == [f"sensitivity/{i:04d}" for i in (1, 3, 5)]
