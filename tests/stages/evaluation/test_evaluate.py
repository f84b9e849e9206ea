"""Evaluate's rows, recomputed in numpy from what a full-precision and a quantized denoiser of a few layers draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.allocation.front import policy_of
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.denoiser import loading
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.evaluation import reference_worker
from adatsq_pipe.stages.evaluation.evaluate import STAGE
from adatsq_pipe.stages.evaluation.evaluate_worker import Evaluate, _ssim
from adatsq_pipe.stages.evaluation.reference import STAGE as REFERENCE
from adatsq_pipe.stages.evaluation.reference_worker import Reference
from adatsq_pipe.stages.evaluation.sampling import draws
from adatsq_pipe.stages.runtime.model import execute, quantized_layers
from adatsq_pipe.stages.scenes.world import captions, scorer
from adatsq_pipe.stages.weights.solved import load_solved
from adatsq_pipe.storage import tables, tensors
from tests.support.drawing_denoiser import Drawing, squares
from tests.support.made_store import MadeStore, make_store

Array = npt.NDArray[np.float64]
CAPTIONS = ["a red circle", "a blue square"]


class Models:
    """A store with an assembled model, and the two denoisers that workers open by their folders."""

    def __init__(self, store: MadeStore, patch: pytest.MonkeyPatch, full: Drawing, quantized: Drawing) -> None:
        self.store, self.full, self.quantized = store, full, quantized
        store.write_survey()
        store.manifest("assemble").open_unit("model")
        store.manifest("assemble").commit("model")
        self.folder = str(store.context.read("assemble", "model")[1])
        patch.setattr(loading, "SLOT", loading.ModelSlot())
        opened = {str(store.context.model.path): full, self.folder: quantized}
        patch.setattr(loading, "Denoiser", lambda folder, **kwargs: opened[folder])

    def evaluated(self, shard: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Tensor]]:
        """The rows of samples and of steps, and the tensors, of one batch."""
        context = self.store.context
        Reference(context)(f"draw/{shard:03d}")
        Evaluate(context)(f"quantized/{shard:03d}")
        folder = context.read("evaluate", f"quantized/{shard:03d}")[1]
        rows = [tables.read(folder / f"{name}.parquet") for name in ("samples", "steps")]
        return rows[0], rows[1], tensors.read(folder)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    """Weights of 2 bits against full precision; two captions, two seeds, three draws to a batch."""
    store = make_store(tmp_path, evaluate={"prompts": CAPTIONS, "seeds": 2, "batch": 3, "seed": 50})
    store.write_front()
    found = Models(store, monkeypatch, Drawing(), Drawing())
    model = found.quantized.parts["transformer"]
    for name in store.names:
        store.weights[name] = model.get_submodule(name).weight.detach().clone()  # type: ignore[operator]
    store.write_layers(bits=2)
    load_solved(store.context, model, policy_of(store.context))
    execute(model, "reference")
    return found


def _relative(x: Tensor, right: Tensor) -> float:
    a, b = x.double().numpy(), right.double().numpy()
    return float(((a - b) ** 2).sum() / (b**2).sum())


def _psnr(x: Tensor, right: Tensor, peak: float) -> float:
    a, b = x.double().numpy(), right.double().numpy()
    return float(20 * np.log10(peak) - 10 * np.log10(((a - b) ** 2).mean()))


def _span(x: Tensor) -> float:
    return float(x.max() - x.min())


def _slow_ssim(a: Array, b: Array, window: int) -> float:
    """SSIM (Wang et al. 2004, eq. 13) over every window that lies inside, sample variances, values in [0, 1]."""
    height, width, channels = a.shape
    found = []
    for c in range(channels):
        for i in range(height - window + 1):
            for j in range(width - window + 1):
                x, y = (p[i : i + window, j : j + window, c].astype(np.float64).ravel() for p in (a, b))
                covariance = ((x - x.mean()) * (y - y.mean())).sum() / (len(x) - 1)
                luminance = (2 * x.mean() * y.mean() + 0.01**2) / (x.mean() ** 2 + y.mean() ** 2 + 0.01**2)
                found.append(luminance * (2 * covariance + 0.03**2) / (x.var(ddof=1) + y.var(ddof=1) + 0.03**2))
    return float(np.mean(found))


def test_draws_are_captions_by_seeds_in_batches(models: Models) -> None:
    """All captions with the first seeds, then all with the second; 3 and 1 of the four to a batch."""
    batches = draws(models.store.context)
    assert [batch.prompts for batch in batches] == [
        ("a red circle", "a blue square", "a red circle"),
        ("a blue square",),
    ]
    first, second = 50 * 1_000_003, 51 * 1_000_003
    assert [batch.seeds for batch in batches] == [(first, first + 1, second), (second + 1,)]


@pytest.mark.parametrize("shard", [0, 1])
def test_reference_units_hold_states_latents_and_pictures(shard: int, models: Models) -> None:
    conditions = draws(models.store.context)[shard]
    Reference(models.store.context)(f"draw/{shard:03d}")
    stored = tensors.read(models.store.context.read("reference", f"draw/{shard:03d}")[1])
    states, latents = models.full.followed(conditions)
    assert len(states) == 3
    assert torch.equal(stored["states"], torch.stack(states))
    assert torch.equal(stored["latents"], latents)
    assert torch.equal(stored["pictures"], squares(conditions, latents))


@pytest.mark.parametrize("shard", [0, 1])
def test_samples_and_steps_are_what_numpy_makes_of_the_two_draws(shard: int, models: Models) -> None:
    samples, steps, stored = models.evaluated(shard)
    conditions = draws(models.store.context)[shard]
    right, got = models.full.followed(conditions), models.quantized.followed(conditions)
    pictures = [squares(conditions, latents) for _, latents in (right, got)]
    assert torch.allclose(stored["pictures"], pictures[1], atol=1e-6)
    assert [row["prompt"] for row in samples] == list(conditions.prompts)
    assert [row["seed"] for row in samples] == list(conditions.seeds)
    for i, row in enumerate(samples):
        reference, quantized = right[1][i], got[1][i]
        assert row["latent_error"] == pytest.approx(_relative(quantized, reference), rel=1e-3)
        assert row["latent_psnr"] == pytest.approx(_psnr(quantized, reference, _span(reference)), abs=0.01)
        assert row["psnr"] == pytest.approx(_psnr(pictures[1][i], pictures[0][i], 1.0), abs=0.01)
        slow = _slow_ssim(pictures[1][i].numpy(), pictures[0][i].numpy(), 7)
        assert row["ssim"] == pytest.approx(slow, abs=1e-4)
        assert 0.005 < row["latent_error"] < 1 and row["ssim"] < 0.995
    assert [row["step"] for row in steps] == [0, 1, 2]
    assert steps[0]["error"] == 0 and steps[0]["psnr"] == 100
    for step in (1, 2):
        reference, quantized = right[0][step], got[0][step]
        assert steps[step]["error"] == pytest.approx(_relative(quantized, reference), rel=1e-3)
        assert steps[step]["psnr"] == pytest.approx(_psnr(quantized, reference, _span(reference)), abs=0.01)
    layers = quantized_layers(models.quantized.transformer)
    unrounded = {"activation_bits": 16.0}
    assert models.store.manifest("evaluate").read(f"quantized/{shard:03d}").value == unrounded, "no policy is followed"
    assert models.store.manifest("reference").read(f"draw/{shard:03d}").value is None
    assert len(layers) == 3 and {layer.execution for layer in layers.values()} == {"simulate"}


def test_of_the_reference_nothing_is_read_into_memory(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip of 81 frames of 480 x 832 takes .4 GB, and its latents before 50 steps as much."""
    _, _, stored = models.evaluated(0)
    manifest = models.store.manifest("evaluate")
    digest = manifest.read("quantized/000").digest
    manifest.discard("quantized/000")
    monkeypatch.setattr(tensors, "read", None)
    Evaluate(models.store.context)("quantized/000")
    assert manifest.read("quantized/000").digest == digest and stored["pictures"].ndim == 4


def test_equal_models_have_no_error_and_a_hundred_decibels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path, evaluate={"prompts": CAPTIONS, "seeds": 1})
    samples, steps, _ = Models(store, monkeypatch, Drawing(), Drawing()).evaluated(0)
    assert [row["psnr"] for row in samples] == [100, 100]
    assert [row["ssim"] for row in samples] == pytest.approx([1, 1])
    assert [row["latent_error"] for row in samples] == [0, 0]
    assert [(row["error"], row["psnr"]) for row in steps] == [(0, 100)] * 3


def test_what_is_no_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    models = Models(store, monkeypatch, Drawing(lambda conditions, latents: latents), Drawing())
    with pytest.raises(StageError, match=r"array of shape \[6, 5, 16\], no picture or clip; leave evaluate out"):
        Reference(models.store.context)("draw/000")


def test_ssim_of_a_clip_is_the_mean_over_its_frames_and_small_pictures_have_small_windows() -> None:
    random = np.random.default_rng(1)
    right = random.random((3, 6, 8, 3)).astype(np.float32)
    got = (right + 0.1 * random.standard_normal(right.shape)).astype(np.float32)
    slow = np.mean([_slow_ssim(a, b, 5) for a, b in zip(got, right, strict=True)])
    assert _ssim(got, right) == pytest.approx(slow, abs=1e-5)


def _shown(wanted: dict[str, str]) -> Callable[[Conditions, Tensor], Tensor]:
    """Pictures of the built-in world: for every caption one that shows what `wanted` says instead."""

    def paint(conditions: Conditions, latents: Tensor) -> Tensor:
        requests = [captions.parse(wanted[prompt]) for prompt in conditions.prompts]
        return torch.from_numpy(scorer.ground_truth(requests, np.random.default_rng(0)))

    return paint


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    """Full precision shows both captions; quantized mistakes the second's colour."""
    evaluate = {"prompts": CAPTIONS, "seeds": 2, "batch": 3, "seed": 50}
    store = make_store(tmp_path, evaluate=evaluate, model={"world": "scenes"})
    same, mistaken = {c: c for c in CAPTIONS}, {CAPTIONS[0]: CAPTIONS[0], CAPTIONS[1]: "a red square"}
    return Models(store, monkeypatch, Drawing(_shown(same)), Drawing(_shown(mistaken)))


def test_pictures_of_the_world_are_scored_by_what_was_asked_for(worlds: Models) -> None:
    rows = [row for shard in (0, 1) for row in worlds.evaluated(shard)[0]]
    assert [row["entry"] for row in rows] == [0, 1, 0, 1]
    assert [row["right"] for row in rows] == [[True], [False], [True], [False]]
    assert [row["reference_right"] for row in rows] == [[True]] * 4
    assert [row["tasks"] for row in rows] == [["colours"]] * 4


def test_features_are_those_of_the_pictures_of_each_model(worlds: Models) -> None:
    """The first 48 features are the means of a 4 x 4 grid of cells."""
    _, _, stored = worlds.evaluated(0)
    wanted = tensors.read(worlds.store.context.read("reference", "draw/000")[1])["pictures"]
    for name, pictures in (("features", stored["pictures"]), ("reference_features", wanted)):
        size = pictures.shape[1] // 4
        for i, picture in enumerate(pictures.numpy()):
            cells = [
                picture[r * size : (r + 1) * size, c * size : (c + 1) * size, channel].mean()
                for r in range(4)
                for c in range(4)
                for channel in range(3)
            ]
            assert np.allclose(stored[name][i, :48].numpy(), cells, atol=1e-5)
    assert not torch.allclose(stored["features"][1], stored["reference_features"][1], atol=0.01)


def test_true_scenes_show_the_captions_in_turn(worlds: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last six features, every colour's coverage, red is the first and blue the third."""
    monkeypatch.setattr(reference_worker, "TRUE_SCENES", 5)
    Reference(worlds.store.context)("truth")
    found = tensors.read(worlds.store.context.read("reference", "truth")[1])["features"]
    assert found.shape == (5, 54)
    red, blue = found[:, 48] > 0.005, found[:, 50] > 0.005
    assert red.tolist() == [True, False, True, False, True]
    assert blue.tolist() == [False, True, False, True, False]


class Listed:
    """An executor that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def stream(self, worker: Any, context: Any, keys: Any) -> Any:
        self.asked.append((worker.stage, list(keys)))
        return iter(())

    def conduct(self, drive: Any, context: Any, report: Any) -> None:
        raise AssertionError


@pytest.mark.parametrize("world", ["", "scenes"])
def test_the_reference_is_drawn_first_and_true_scenes_only_for_a_world(world: str, tmp_path: Path) -> None:
    evaluate = {"prompts": CAPTIONS, "seeds": 5, "batch": 4}
    store, executor = make_store(tmp_path, evaluate=evaluate, model={"world": world}), Listed()
    for stage in (REFERENCE, STAGE):
        stage.run(store.context, executor, lambda done, total: None)
    truth = ["truth"] if world else []
    assert executor.asked == [
        ("reference", [*truth, "draw/000", "draw/001", "draw/002"]),
        ("evaluate", ["quantized/000", "quantized/001", "quantized/002"]),
    ]
    assert STAGE.expected(store.context) == 3 and REFERENCE.expected(store.context) == 3 + len(truth)
