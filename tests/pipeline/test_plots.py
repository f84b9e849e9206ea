"""The report's plots: the numbers that they show, each computed here a second time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from adatsq_pipe.pipeline.plots import figures, front, policy, steps, weight_bits
from adatsq_pipe.pipeline.summary import PerStep
from adatsq_pipe.stages.calibration.unit_keys import DIFFERENTIABLE
from adatsq_pipe.stages.weights.widths import WeightWidths
from adatsq_pipe.storage import tables, tensors
from tests.support.drawn import coloured, pixels
from tests.support.made_context import FIRST, SECOND
from tests.support.made_store import MadeStore, make_store

TRAJECTORY = {"method": "endpoint", "conditioning_group": 0}
FOUR = 2
"""Place of 4 bits among the stored widths 2 3 4 5 6 8."""


class Seen:
    """What was drawn: the images, and (x, y, label) of the lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images, self.lines = list[Any](), list[tuple[list[float], list[float], str]]()
        image, line = Axes.imshow, Axes.plot

        def imshow(axes: Axes, data: Any, **more: Any) -> Any:
            self.images.append(data)
            return image(axes, data, **more)

        def plot(axes: Axes, x: Any, y: Any, *style: Any, **more: Any) -> Any:
            self.lines.append((list(x), list(y), more.get("label", "")))
            return line(axes, x, y, *style, **more)

        monkeypatch.setattr(Axes, "imshow", imshow)
        monkeypatch.setattr(Axes, "plot", plot)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def _sweeps(store: MadeStore, obstacle: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """One sweep for each of two batches of two captions; returns (activations, latents) of all captions."""
    random, manifest = torch.Generator().manual_seed(5), store.manifest("fisher")
    manifest.open_unit(DIFFERENTIABLE)
    manifest.commit(DIFFERENTIABLE, value={"obstacle": obstacle})
    activations = torch.randn(4, 3, 3, 6, generator=random)
    activations[:, :, 2] = 0
    latents = torch.rand(4, generator=random, dtype=torch.float64) + 1
    for batch in (0, 1):
        unit, own = f"sweep/{batch:03d}-000", slice(2 * batch, 2 * batch + 2)
        parts = {"activations": activations[own], "weights": torch.ones(2, 3, 3), "latents": latents[own]}
        tensors.write(manifest.open_unit(unit), parts)
        manifest.commit(unit)
    return activations.double(), latents


def test_the_policy_stands_beside_fisher_scores_of_the_same_steps_and_layers(tmp_path: Path, seen: Seen) -> None:
    store = make_store(tmp_path)
    store.bits[1][0] = 16
    store.write_survey()
    store.write_scores()
    store.write_front()
    policy.draw(store.context, tmp_path / "policy.png")
    sensitivities, bits = seen.images
    wanted = store.scores.mean(0).log10().T[:2]
    assert sensitivities.shape == (2, 3), "layers down, steps across, no weight-only row"
    assert np.ma.getmaskarray(sensitivities).tolist() == [[False, True, False], [False] * 3], "16 bits: not rounded"
    assert sensitivities[1].tolist() == pytest.approx(wanted[1].tolist())
    assert sensitivities[0, ::2].tolist() == pytest.approx(wanted[0, ::2].tolist())
    shown = [[None if place is None else (3, 4, 8)[place] for place in row] for row in bits.tolist()]
    assert shown == [[None if row[i] == 16 else row[i] for row in store.bits] for i in (0, 1)]
    assert coloured(tmp_path / "policy.png") > 0.2


def test_an_end_to_end_map_is_the_squared_effect_of_four_bits_as_a_share_of_all_places(
    tmp_path: Path, seen: Seen
) -> None:
    store = make_store(tmp_path, recipe=TRAJECTORY)
    store.write_survey()
    store.write_front()
    activations, _ = _sweeps(store)
    policy.draw(store.context, tmp_path / "policy.png")
    four = activations[..., FOUR]
    mean = (four / four.sum(1).norm(dim=1)[:, None, None]).abs().mean(0)
    wanted = (math.pi / 2 * mean**2).log10().T[:2]
    assert seen.images[0].tolist() == [pytest.approx(row) for row in wanted.tolist()]


def test_the_front_shows_predictions_rollouts_and_the_chosen_policy_in_decibels(tmp_path: Path, seen: Seen) -> None:
    store = make_store(tmp_path)
    rows = [
        {"mean_bits": 4.0, "predicted_error": 0.01, "rollout_error": 0.1},
        {"mean_bits": 3.0, "predicted_error": 0.1, "rollout_error": None},
        {"mean_bits": 8.0, "predicted_error": 0.001, "rollout_error": None},
    ]
    assert not front.has_front(store.context)
    store.write_front(rows)
    assert front.has_front(store.context)
    manifest = store.manifest("evaluate")
    tables.write(manifest.open_unit("quantized/000") / "samples.parquet", [{"latent_error": e} for e in (0.01, 0.0001)])
    manifest.commit("quantized/000")
    front.draw(store.context, tmp_path / "front.png")
    predicted, tried, chosen = seen.lines
    assert predicted[0] == [3.0, 4.0, 8.0] and predicted[1] == pytest.approx([10.0, 20.0, 30.0])
    assert predicted[2] == "predicted, activations alone"
    assert tried[0] == [4.0] and tried[1] == pytest.approx([10.0])
    rounded = [b for row in store.bits for b in row if b != 16]
    assert chosen[0] == [pytest.approx(sum(rounded) / len(rounded))]
    assert chosen[1] == [pytest.approx(30.0)], "the geometric mean"
    assert pixels(tmp_path / "front.png").std() > 1


def test_the_label_says_that_predictions_include_the_weights(tmp_path: Path, seen: Seen) -> None:
    store = make_store(tmp_path)
    manifest = store.manifest("search")
    row = {"mean_bits": 4.0, "predicted_error": 0.01, "rollout_error": None}
    tables.write(manifest.open_unit("front") / "front.parquet", [row])
    manifest.commit(
        "front", value={"policy": store.bits, "mean_bits": 4.0, "mac_weighted_bits": 4.0, "weights_error": 0.004}
    )
    manifest = store.manifest("evaluate")
    tables.write(manifest.open_unit("quantized/000") / "samples.parquet", [{"latent_error": 0.01}])
    manifest.commit("quantized/000")
    front.draw(store.context, tmp_path / "front.png")
    assert seen.lines[0][1] == [pytest.approx(20.0)]
    assert seen.lines[0][2] == "predicted, activations and weights"


def test_the_steps_begin_after_the_common_noise(tmp_path: Path, seen: Seen) -> None:
    steps.draw(PerStep(latent_relative_error=[], latent_psnr_db=[99.0, 40.0, 30.0]), tmp_path / "steps.png")
    assert seen.lines[0][:2] == ([1, 2], [40.0, 30.0])


def test_weight_bits_are_bars_with_their_mean_over_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars, lines = list[Sequence[int]](), list[float]()
    real, vertical = Axes.barh, Axes.axvline

    def barh(self: Axes, y: Any, width: Any, **more: Any) -> Any:
        bars.append(list(width))
        return real(self, y, width, **more)

    def axvline(self: Axes, x: float, **more: Any) -> Any:
        lines.append(x)
        return vertical(self, x, **more)

    monkeypatch.setattr(Axes, "barh", barh)
    monkeypatch.setattr(Axes, "axvline", axvline)
    widths = WeightWidths(bits={FIRST: 2, SECOND: 6}, sizes={FIRST: 300, SECOND: 100})
    weight_bits.draw(widths, tmp_path / "bits.png")
    assert (bars, lines) == ([[2, 6]], [pytest.approx(3.0)])
    assert str(widths) == "2 bits in 1 layer, 6 bits in 1 layer; 3.00 on average over parameters"


def test_many_layers_are_named_by_block() -> None:
    plt = figures.pyplot()
    few = [f"blocks.{i}.{kind}" for i in range(3) for kind in ("q", "k")]
    many = [f"blocks.{i}.{kind}" for i in range(60) for kind in ("q", "k", "v")]
    for names, wanted in ((few, few), (many, [f"blocks.{i}" for i in range(0, 60, 2)])):
        figure, axis = plt.subplots()
        figures.name_layers(axis, names)
        assert [label.get_text() for label in axis.get_yticklabels()] == wanted
        plt.close(figure)
