"""Latents: normalised as the pipelines expect, and pictures come back from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from adatsq_pipe.stages.scenes.builtin_models import MODELS_FOLDER
from adatsq_pipe.stages.scenes.train import components, flux, latents
from adatsq_pipe.stages.scenes.world import rendering


def test_pictures_come_back_from_normalised_latents() -> None:
    vae = AutoencoderKL.from_pretrained(MODELS_FOLDER / "flux-dev", subfolder="vae")
    pictures = rendering.batch((0,), 64)[1]
    encoded = latents.encoded(vae, pictures)
    assert encoded.shape == (64, 8, 16, 16)
    assert abs(encoded.mean().item()) < 0.05 and abs(encoded.std().item() - 1) < 0.05
    decoded = flux.pictures(vae, flux.pack(encoded))
    expected = ((pictures + 1) / 2).movedim(1, -1).numpy()
    assert decoded.shape == (64, 32, 32, 3)
    assert np.abs(decoded - expected).mean() < 0.01


def test_latents_are_shifted_and_then_scaled_and_decoded_in_reverse() -> None:
    vae = AutoencoderKL.from_pretrained(MODELS_FOLDER / "flux-dev", subfolder="vae")
    vae.register_to_config(scaling_factor=4.0, shift_factor=0.5)
    pictures = rendering.batch((0,), 2)[1]
    with torch.no_grad():
        raw = vae.encode(pictures).latent_dist.mean
    encoded = latents.encoded(vae, pictures)
    torch.testing.assert_close(encoded, (raw - 0.5) * 4)
    expected = ((pictures + 1) / 2).movedim(1, -1).numpy()
    assert np.abs(flux.pictures(vae, flux.pack(encoded)) - expected).mean() < 0.02


def test_a_training_set_holds_training_captions_and_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "_CHUNK", 16)
    vae = AutoencoderKL.from_pretrained(MODELS_FOLDER / "flux-dev", subfolder="vae")
    tensors = latents.training_set(vae, tmp_path, seed=3, scenes=40)
    assert tensors["latents"].shape == (32, 8, 16, 16), "whole chunks"
    texts, pictures = rendering.batch((3, 4, 1), 16)
    assert torch.equal(tensors["ids"][16:], components.ids(texts))
    torch.testing.assert_close(tensors["latents"][16:].float(), latents.encoded(vae, pictures), atol=4e-3, rtol=1e-2)
    monkeypatch.setattr(rendering, "batch", None)
    assert torch.equal(latents.training_set(vae, tmp_path, seed=3, scenes=40)["latents"], tensors["latents"])
