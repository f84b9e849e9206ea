"""The latent space that the image families share, and their training set in it."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save
from torch import Tensor

from adatsq_pipe.stages.scenes.train import components
from adatsq_pipe.stages.scenes.train.training import DEVICE, generator, train_part
from adatsq_pipe.stages.scenes.world import rendering
from adatsq_pipe.storage.files import write_bytes

CHANNELS = 8
SCENES = 65536
_CHUNK = 512


def train_autoencoder(work: Path, *, steps: int, seed: int) -> AutoencoderKL:
    """A KL autoencoder of pictures, frozen; its config holds the latents' mean and deviation."""
    torch.manual_seed(seed)
    vae = components.autoencoder(CHANNELS)

    def loss(step: int) -> Tensor:
        picture = rendering.batch((seed, 1, step), 24)[1].to(DEVICE)
        posterior = vae.encode(picture).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator(seed, "autoencoder", step)).to(DEVICE)
        restored = vae.decode(posterior.mean + posterior.std * noise).sample
        error: Tensor = (restored - picture).square().mean() + 1e-5 * posterior.kl().mean() / posterior.mean[0].numel()
        return error

    smooth = train_part("autoencoder", vae, loss, steps=steps, rate=2.4e-3, work=work, average=0.99, decay=0.0)
    assert isinstance(smooth, AutoencoderKL)
    with torch.no_grad():
        latents = smooth.encode(rendering.batch((seed, 3), 512)[1]).latent_dist.mean
    smooth.register_to_config(
        scaling_factor=round(1 / latents.std().item(), 4), shift_factor=round(latents.mean().item(), 4)
    )
    return smooth


@torch.no_grad()
def encoded(vae: AutoencoderKL, pictures_B3HW: Tensor) -> Tensor:
    """Normalised latents `[B, C, H, W]` of pictures with values in [-1, 1]."""
    z = vae.encode(pictures_B3HW.to(vae.device)).latent_dist.mean
    normalised: Tensor = (z - vae.config.shift_factor) * vae.config.scaling_factor
    return normalised


@torch.no_grad()
def training_set(vae: AutoencoderKL, work: Path, *, seed: int, scenes: int = SCENES) -> dict[str, Tensor]:
    """`scenes` captioned training scenes: `latents` fp16 `[N, C, H, W]`, normalised, and `ids` `[N, TEXT_LENGTH]`."""
    path = work / "training_set.safetensors"
    if path.exists():
        cached: dict[str, Tensor] = load_file(path)
        return cached
    vae = vae.to(memory_format=torch.channels_last)
    latents, ids = [], []
    for chunk in range(scenes // _CHUNK):
        captions, picture = rendering.batch((seed, 4, chunk), _CHUNK)
        latents.append(encoded(vae, picture.to(memory_format=torch.channels_last)).half().contiguous())
        ids.append(components.ids(captions))
    tensors = {"latents": torch.cat(latents), "ids": torch.cat(ids)}
    write_bytes(path, save(tensors))
    return tensors
