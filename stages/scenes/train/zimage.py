"""scenes/z-image: a single-stream transformer, with captions encoded by a causal language model; 10 steps.

Flow matching in flux-dev's latents, with the stock pipeline's sign and clock: t runs from 0 (noise) to 1, and the model
predicts clean minus noise. Guidance is classifier-free, with both halves in one batch.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn

from adatsq_pipe.stages.scenes.train import components, flux, latents
from adatsq_pipe.stages.scenes.train.text_encoder import CausalTextEncoder
from adatsq_pipe.stages.scenes.train.training import DEVICE, TrainConfig, generator, train_part
from adatsq_pipe.stages.scenes.world import rendering

STEPS = 10
GUIDANCE = 1.0
"""The stock pipeline computes v + GUIDANCE (v - v_empty): 1 is a classifier-free weight of 2."""
SHIFT = 1.65
"""The scheduler's static shift: flux-dev's dynamic shift at 64 tokens."""


def transformer() -> ZImageTransformer2DModel:
    """2 M parameters; captions are padded to 32 tokens by the model itself."""
    model = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=latents.CHANNELS,
        dim=128,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        qk_norm=True,
        cap_feat_dim=components.TEXT_WIDTH,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[8, 12, 12],
        axes_lens=[128, 32, 32],
    )
    with torch.no_grad():
        for token in (model.x_pad_token, model.cap_pad_token):
            nn.init.normal_(token, std=0.02)
    return model


def train(
    encoder: CausalTextEncoder,
    scenes: dict[str, Tensor],
    work: Path,
    config: TrainConfig,
    *,
    start: nn.Module | None = None,
) -> ZImageTransformer2DModel:
    """The running average after `config.steps` of flow matching, captions dropped once in ten."""
    torch.manual_seed(config.seed)
    encoder, model = encoder.to(DEVICE), transformer()
    if start is not None:
        model.load_state_dict(start.state_dict())
    if config.compile:
        model.compile_repeated_blocks(dynamic=False)
    words = components.tokenizer()
    empty = torch.full((1, components.TEXT_LENGTH), int(words.pad_token_id))
    empty[0, 0] = words.eos_token_id

    def loss(step: int) -> Tensor:
        source = generator(config.seed, "z-image", step)
        rows = torch.randint(len(scenes["ids"]), (config.batch,), generator=source)
        clean, ids = scenes["latents"][rows].float(), scenes["ids"][rows].long()
        noise = torch.randn(clean.shape, generator=source)
        sigma = torch.sigmoid(torch.randn(config.batch, generator=source) + flux.TIME_SHIFT)
        ids = torch.where(torch.rand(config.batch, 1, generator=source) < 0.1, empty, ids)
        clean, noise, sigma, ids = (each.to(DEVICE) for each in (clean, noise, sigma, ids))
        x = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1))
        with torch.no_grad(), torch.autocast(DEVICE.type, enabled=False):
            text = encoder.states(ids)
        captions = [state[row != words.pad_token_id] for state, row in zip(text, ids, strict=True)]
        velocity = model(list(x.unsqueeze(2).unbind(0)), 1 - sigma, captions, return_dict=False)[0]
        error: Tensor = (torch.stack(velocity).squeeze(2).float() - (clean - noise)).square().mean()
        return error

    smooth = train_part("z-image", model, loss, steps=config.steps, rate=config.rate, work=work, half=config.half)
    assert isinstance(smooth, ZImageTransformer2DModel)
    return smooth


def pipeline(vae: AutoencoderKL, encoder: CausalTextEncoder, denoiser: ZImageTransformer2DModel) -> ZImagePipeline:
    """The stock pipeline around the trained parts; its chat template is the bare caption."""
    words = components.tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=encoder.text_encoder,
        tokenizer=words,
        transformer=denoiser,
    )


def call() -> dict[str, int | float]:
    """The arguments of a pipeline call, stored as sampling.json."""
    return {
        "height": rendering.SIZE,
        "width": rendering.SIZE,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "max_sequence_length": components.TEXT_LENGTH,
    }
