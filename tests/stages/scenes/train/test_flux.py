"""flux-dev's schedule, guidance and losses, against formulas written out here and the stock scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from adatsq_pipe.stages.scenes.train import components, flux, text_encoder, zimage
from adatsq_pipe.stages.scenes.train.training import TrainConfig, generator


def test_the_shift_is_that_of_the_pipelines_scheduler() -> None:
    steps = 16
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=0.5)
    assert [flux.shifted(1 - i / steps) for i in range(steps + 1)] == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    assert flux.shifted(0.5) == pytest.approx(math.exp(0.5) / (1 + math.exp(0.5)))


def test_z_images_static_shift_is_that_of_flux_dev() -> None:
    assert pytest.approx(math.exp(0.5), abs=0.01) == zimage.SHIFT


def test_an_embedded_scale_stands_for_its_weight() -> None:
    assert flux.guidance_weight(torch.tensor([1.0, 3.5, 6.0])).tolist() == [1, 2, 3]


def test_guidance_extrapolates_from_the_empty_caption() -> None:
    conditional, unconditional = torch.full((2, 1, 1), 5.0), torch.full((2, 1, 1), 3.0)
    guided = flux.guided_velocity(conditional, unconditional, torch.tensor([1.0, 3.5]))
    assert guided.flatten().tolist() == [5, 7]


def test_packing_puts_two_by_two_latents_into_a_token() -> None:
    latents = torch.arange(32.0).view(1, 2, 4, 4)
    packed = flux.pack(latents)
    assert packed.shape == (1, 4, 8)
    assert packed[0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    assert packed[0, 3].tolist() == [10, 11, 14, 15, 26, 27, 30, 31]


class _Fake(nn.Module):
    """Predicts the latents times the caption's length in tokens: text and guidance can be told apart by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.guidance: list[Tensor | None] = []

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, guidance: Tensor, **_: object
    ) -> tuple[Tensor]:
        self.guidance.append(guidance)
        return (self.weight * hidden_states * encoder_hidden_states[:, 0, 0].view(-1, 1, 1),)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> flux.Batches:
    scenes = {
        "latents": torch.randn(50, 8, 16, 16, generator=generator(1)).half(),
        "ids": torch.from_numpy(np.random.default_rng(0).integers(4, 20, (50, components.TEXT_LENGTH))),
    }
    batches = flux.Batches(text_encoder.FluxTextEncoder(), scenes, seed=5, size=16)

    def encode(ids: Tensor, length: int) -> dict[str, Tensor]:
        words = (ids > 3).sum(1).float()
        return {"encoder_hidden_states": words.view(-1, 1, 1).expand(-1, length, 1)}

    monkeypatch.setattr(batches, "encode", encode)
    return batches


def _loss(monkeypatch: pytest.MonkeyPatch, train: Callable[[], object]) -> Callable[[int], Tensor]:
    """The loss that `train` would minimize."""
    losses: list[Callable[[int], Tensor]] = []

    def capture(name: str, model: nn.Module, loss: Callable[[int], Tensor], **_: object) -> nn.Module:
        losses.append(loss)
        return flux.transformer()

    monkeypatch.setattr(flux, "train_part", capture)
    train()
    return losses[0]


CONFIG = TrainConfig(steps=1, rate=1.0, batch=16, seed=5, compile=False)


def test_flow_matching_learns_noise_minus_picture_and_drops_captions(
    batches: flux.Batches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = _Fake()
    monkeypatch.setattr(flux, "transformer", lambda: fake)
    batches.ids[:] = torch.tensor([4] * 3 + [3] + [0] * 8)
    losses: list[Callable[[int], Tensor]] = []
    monkeypatch.setattr(flux, "train_part", lambda name, model, loss, **_: losses.append(loss))
    flux.train_flow(batches, tmp_path, CONFIG)
    dropped = 0
    for step in range(8):
        _, clean, noise, t, _, source = batches("flow", step)
        words = torch.where(torch.rand(16, generator=source) < 0.1, 0.0, 3.0).view(-1, 1, 1)
        x = (1 - t.view(-1, 1, 1)) * clean + t.view(-1, 1, 1) * noise
        assert losses[0](step).item() == pytest.approx((words * x - (noise - clean)).square().mean().item(), rel=1e-5)
        dropped += int((words == 0).sum())
    assert 4 <= dropped <= 24, "one caption in ten of 128"
    assert all(bool((scale == 1).all()) for scale in fake.guidance if scale is not None)


def test_distillation_learns_the_guided_velocity_of_the_teacher(
    batches: flux.Batches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loss = _loss(monkeypatch, lambda: flux.train_guidance(_Fake(), batches, tmp_path, CONFIG))
    ids, clean, noise, t, _, source = batches("guidance", 0, flux.LONG_EVERY_GUIDED)
    scale = 1 + 5 * torch.rand(16, generator=source)
    x = (1 - t.view(-1, 1, 1)) * clean + t.view(-1, 1, 1) * noise
    words = (ids > 3).sum(1).float()
    weight = 1 + (scale - 1) / 2.5
    difference = (words - weight * words).view(-1, 1, 1) * x
    assert loss(0).item() == pytest.approx(difference.square().mean().item(), rel=1e-5)


def test_a_batch_is_decided_by_its_step_and_some_are_padded(batches: flux.Batches) -> None:
    first, again, other = batches("flow", 3), batches("flow", 3), batches("flow", 4)
    assert torch.equal(first[2], again[2]) and not torch.equal(first[2], other[2])
    assert (len(first[0]), first[4]) == (16, 12)
    long = batches("flow", 15)
    assert (len(long[0]), long[4]) == (2, 512)


def test_times_lean_towards_noise(batches: flux.Batches) -> None:
    times = torch.cat([batches("flow", step)[3] for step in range(0, 600, 2)])
    assert torch.logit(times).mean().item() == pytest.approx(0.4, abs=0.06)
    assert torch.logit(times).std().item() == pytest.approx(1, abs=0.05)
