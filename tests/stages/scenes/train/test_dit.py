"""dit-xl: the target of its loss, and salient channels that leave the model's function unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from adatsq_pipe.stages.scenes.builtin_models import MODELS_FOLDER
from adatsq_pipe.stages.scenes.train import dit
from adatsq_pipe.stages.scenes.train.training import TrainConfig, generator
from adatsq_pipe.stages.scenes.world import captions, scorer


def test_salient_channels_change_what_layers_read_and_not_the_output() -> None:
    model = dit.transformer().double().eval()
    source = generator(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    inputs: dict[str, list[torch.Tensor]] = {}
    for name in ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj"):
        layer = model.get_submodule(f"transformer_blocks.2.{name}")
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, []).append(args[0]))
    latents = torch.randn(3, 8, 16, 16, generator=source).double()
    call = {"timestep": torch.tensor([10, 500, 990]), "class_labels": torch.tensor([0, 7, dit.NO_CLASS])}

    def output() -> torch.Tensor:
        with torch.no_grad():
            sample: torch.Tensor = model(latents, **call).sample
            return sample

    before = output()
    dit.make_salient(model, 1.0, seed=5)
    assert torch.allclose(output(), before, rtol=0, atol=1e-12)
    dit.make_salient(model, 16.0, seed=5)
    assert torch.allclose(output(), before, rtol=1e-6, atol=1e-9)
    for name, (first, _, last) in inputs.items():
        gains = (last.abs().amax((0, 1)) / first.abs().amax((0, 1))).sort().values
        assert torch.allclose(gains[:-5], torch.ones_like(gains[:-5]), atol=1e-5), name
        assert gains[-5] >= 4 - 1e-5 and gains[-1] <= 16 + 1e-5, f"{name}: 4 % of 128 channels are 5"


class _Fake(nn.Module):
    """Predicts the noisy latents."""

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor, **_: object) -> tuple[Tensor]:
        self.labels = class_labels
        return (x,)


def test_the_model_learns_v_of_the_linear_schedule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """v = sqrt(a) noise - sqrt(1 - a) clean, a = prod(1 - beta), beta from 1e-4 to 0.02 (Salimans & Ho 2202.00512)."""
    fake, real = _Fake(), dit.transformer()
    losses: list[Callable[[int], Tensor]] = []

    def capture(name: str, model: nn.Module, loss: Callable[[int], Tensor], **_: object) -> nn.Module:
        losses.append(loss)
        return real

    clean, classes = torch.randn(50, 8, 16, 16, generator=generator(1)), torch.arange(50) % 24
    monkeypatch.setattr(dit, "training_set", lambda vae, seed, scenes: (clean, classes))
    monkeypatch.setattr(dit, "transformer", lambda: fake)
    monkeypatch.setattr(dit, "train_part", capture)
    config = TrainConfig(steps=1, rate=1.0, batch=64, seed=5, compile=False)
    dit.train(None, tmp_path, config, scenes=50)  # type: ignore[arg-type]
    source = generator(5, "dit", 2)
    rows = torch.randint(50, (64,), generator=source)
    noise = torch.randn((64, 8, 16, 16), generator=source)
    t = torch.randint(1000, (64,), generator=source)
    dropped = torch.rand(64, generator=source) < 0.1
    a = torch.tensor(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[t].view(-1, 1, 1, 1)
    noisy, v = a.sqrt() * clean[rows] + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * clean[rows]
    assert losses[0](2).item() == pytest.approx((noisy - v).square().mean().item(), rel=1e-5)
    assert fake.labels.tolist() == torch.where(dropped, 1000, classes[rows]).tolist()


def test_the_training_set_has_single_things_of_all_classes() -> None:
    vae = AutoencoderKL.from_pretrained(MODELS_FOLDER / "dit-xl", subfolder="vae")
    latents, classes = dit.training_set(vae, seed=0, scenes=96)
    assert latents.shape == (96, 8, 16, 16) and len(classes.unique()) > 20
    decoded = vae.decode(latents / vae.config.scaling_factor).sample.detach()
    pictures = ((decoded + 1) / 2).clamp(0, 1).movedim(1, -1).numpy()
    requests = [captions.class_request(int(label)) for label in classes]
    assert np.mean([verdict["colours"] for verdict in scorer.verdicts(requests, pictures)]) > 0.95
