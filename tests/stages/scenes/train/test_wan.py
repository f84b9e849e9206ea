"""wan's loss: sign and clock of the stock pipeline, captions dropped once in ten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adatsq_pipe.stages.scenes.train import wan
from adatsq_pipe.stages.scenes.train.training import TrainConfig, generator


class _Fake(nn.Module):
    """Predicts the noisy latents times the timestep."""

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **_: object
    ) -> tuple[Tensor]:
        self.words = encoder_hidden_states.abs().amax(-1).gt(0).sum(1).tolist()
        return (hidden_states * timestep.view(-1, 1, 1, 1, 1),)


def test_the_model_learns_noise_minus_clip_at_timesteps_of_a_thousand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake, real = _Fake(), wan.transformer()
    losses: list[Callable[[int], Tensor]] = []

    def capture(name: str, model: nn.Module, loss: Callable[[int], Tensor], **_: object) -> nn.Module:
        losses.append(loss)
        return real

    monkeypatch.setattr(wan, "transformer", lambda: fake)
    monkeypatch.setattr(wan, "train_part", capture)
    clips = {
        "latents": torch.randn(20, 8, 3, 16, 16, generator=generator(1)).half(),
        "ids": wan.token_ids(["a red circle moving left fast"] * 20),
    }
    config = TrainConfig(steps=1, rate=1.0, batch=16, seed=5, compile=False)
    wan.train(wan.MotionTextEncoder(), clips, tmp_path, config)
    source = generator(5, "wan", 3)
    clean = clips["latents"][torch.randint(20, (16,), generator=source)].float()
    noise = torch.randn(clean.shape, generator=source)
    t = torch.sigmoid(torch.randn(16, generator=source) + 0.4).view(-1, 1, 1, 1, 1)
    dropped = (torch.rand(16, 1, generator=source) < 0.1).flatten()
    predicted = ((1 - t) * clean + t * noise) * 1000 * t
    assert losses[0](3).item() == pytest.approx((predicted - (noise - clean)).square().mean().item(), rel=1e-5)
    assert fake.words == [1 if drop else 7 for drop in dropped], "the closing token and six words"
