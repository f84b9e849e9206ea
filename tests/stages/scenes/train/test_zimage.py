"""z-image's loss: sign and clock of the stock pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adatsq_pipe.stages.scenes.train import components, text_encoder, zimage
from adatsq_pipe.stages.scenes.train.training import TrainConfig, generator

CONFIG = TrainConfig(steps=1, rate=1.0, batch=16, seed=5, compile=False)


class _Fake(nn.Module):
    """Predicts the noisy latents times their time."""

    def forward(self, x: list[Tensor], t: Tensor, captions: list[Tensor], **_: object) -> tuple[list[Tensor]]:
        self.lengths = [len(caption) for caption in captions]
        return ([each * time for each, time in zip(x, t, strict=True)],)


def test_the_model_learns_picture_minus_noise_at_times_that_end_at_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = _Fake()
    losses: list[Callable[[int], Tensor]] = []

    def capture(name: str, model: nn.Module, loss: Callable[[int], Tensor], **_: object) -> nn.Module:
        losses.append(loss)
        return real

    real = zimage.transformer()
    monkeypatch.setattr(zimage, "transformer", lambda: fake)
    monkeypatch.setattr(zimage, "train_part", capture)
    scenes = {
        "latents": torch.randn(50, 8, 16, 16, generator=generator(1)).half(),
        "ids": components.ids(["a red circle"] * 50),
    }
    zimage.train(text_encoder.CausalTextEncoder(), scenes, tmp_path, CONFIG)
    source = generator(5, "z-image", 3)
    clean = scenes["latents"][torch.randint(50, (16,), generator=source)].float()
    noise = torch.randn(clean.shape, generator=source)
    level = torch.sigmoid(torch.randn(16, generator=source) + 0.4).view(-1, 1, 1, 1)
    dropped = (torch.rand(16, 1, generator=source) < 0.1).flatten()
    predicted = ((1 - level) * clean + level * noise) * (1 - level)
    assert losses[0](3).item() == pytest.approx((predicted - (clean - noise)).square().mean().item(), rel=1e-5)
    assert fake.lengths == [1 if drop else 4 for drop in dropped]
