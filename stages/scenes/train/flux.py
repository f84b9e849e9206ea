"""scenes/flux-dev: how its transformer is trained, and the pipeline that it becomes.

Flow matching on logit-normal times (Esser et al. 2403.03206), then guidance distillation: the student learns the
classifier-free-guided velocity of the frozen teacher (Meng et al. 2210.03142), so one call per step is enough.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from adatsq_pipe.stages.scenes.train import components, latents
from adatsq_pipe.stages.scenes.train.text_encoder import FluxTextEncoder
from adatsq_pipe.stages.scenes.train.training import DEVICE, TrainConfig, generator, train_part
from adatsq_pipe.stages.scenes.world import rendering

DEFAULT_GUIDANCE = 3.5
LONG_TEXT = 512
"""Tokens to which a plain pipeline call pads captions; one batch in LONG_EVERY is padded like that, and is smaller."""
LONG_EVERY = 16
LONG_EVERY_GUIDED = 2
"""The interval in distillation. Its targets come from short captions, so the padded input learns from the short one."""
TIME_SHIFT = 0.4
"""Mean of the logit of the times. It moves them towards noise, where the layout of a picture is decided."""

SHIFT = math.exp(0.5)
"""The shift that the pipeline's scheduler applies for 64 image tokens, exp(mu)."""

Denoiser = Callable[..., tuple[Tensor]]
"""A transformer, or its compiled form: predicts the velocity."""


def transformer(*, guidance: bool = True) -> FluxTransformer2DModel:
    """2.4 M parameters over 64 image tokens."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * latents.CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=components.TEXT_WIDTH,
        pooled_projection_dim=components.TEXT_WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(8, 12, 12),
    )


def guidance_weight(scale: Tensor) -> Tensor:
    """The classifier-free weight w that an embedded guidance scale stands for; scale 1 is no guidance (w = 1)."""
    return 1 + (scale - 1) / 2.5


def guided_velocity(conditional_BNC: Tensor, unconditional_BNC: Tensor, scale_B: Tensor) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2207.12598) at embedded guidance scales."""
    weight = guidance_weight(scale_B).view(-1, 1, 1)
    return unconditional_BNC + weight * (conditional_BNC - unconditional_BNC)


def shifted(t: float) -> float:
    """The noise level that the pipeline's scheduler makes of the evenly spaced level `t`, both in [0, 1]."""
    return SHIFT * t / (1 + (SHIFT - 1) * t)


def pack(latents_BCHW: Tensor) -> Tensor:
    """Latents `[B, C, H, W]` as tokens `[B, H W / 4, 4 C]`, each of 2 x 2 latents."""
    packed: Tensor = FluxPipeline._pack_latents(latents_BCHW, *latents_BCHW.shape)
    return packed


@torch.no_grad()
def pictures(vae: AutoencoderKL, packed_BNC: Tensor) -> npt.NDArray[np.float32]:
    """Decode packed latents: float32 `[B, SIZE, SIZE, 3]` in [0, 1]."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    z = FluxPipeline._unpack_latents(packed_BNC.to(vae.device), rendering.SIZE, rendering.SIZE, factor)
    decoded = vae.decode(z / vae.config.scaling_factor + vae.config.shift_factor).sample
    images: npt.NDArray[np.float32] = (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu().numpy()
    return images


class TextInputs:
    """The transformer's text inputs, from frozen text encoders."""

    def __init__(self, encoder: FluxTextEncoder | FluxPipeline) -> None:
        self.encoder = encoder.to(DEVICE)
        self.empty, self.pad = components.ids([""])[0], components.tokenizer().pad_token_id

    @torch.no_grad()
    def encode(self, ids: Tensor, length: int) -> dict[str, Tensor]:
        """The text inputs for token ids `[B, TEXT_LENGTH]`, padded to `length` tokens."""
        ids = ids.to(DEVICE)
        longer = torch.nn.functional.pad(ids, (0, length - ids.shape[1]), value=self.pad)
        return {
            "pooled_projections": self.encoder.text_encoder(ids).pooler_output,
            "encoder_hidden_states": self.encoder.text_encoder_2(longer)[0],
            "txt_ids": torch.zeros(length, 3, device=DEVICE),
        }


class Batches(TextInputs):
    """Seeded batches of the training set, with their text inputs."""

    def __init__(
        self, encoder: FluxTextEncoder | FluxPipeline, scenes: dict[str, Tensor], *, seed: int, size: int
    ) -> None:
        super().__init__(encoder)
        self.seed, self.size = seed, size
        self.clean, self.ids = pack(scenes["latents"]), scenes["ids"].long()

    def __call__(
        self, name: str, step: int, long_every: int = LONG_EVERY
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, int, torch.Generator]:
        """Token ids, clean latents, noise, times, text length, and the step's generator for further draws."""
        source = generator(self.seed, name, step)
        long = step % long_every == long_every - 1
        size, length = (self.size // 8, LONG_TEXT) if long else (self.size, components.TEXT_LENGTH)
        rows = torch.randint(len(self.ids), (size,), generator=source)
        clean = self.clean[rows].float()
        noise = torch.randn(clean.shape, generator=source)
        t = torch.sigmoid(torch.randn(size, generator=source) + TIME_SHIFT)
        return self.ids[rows], clean.to(DEVICE), noise.to(DEVICE), t.to(DEVICE), length, source


def velocity(denoiser: Denoiser, text: dict[str, Tensor], x_BNC: Tensor, t_B: Tensor, scale_B: Tensor | None) -> Tensor:
    """The transformer's velocity (noise - clean) for packed latents at times `t_B` (1 = noise) and guidance scales."""
    side = math.isqrt(x_BNC.shape[1])
    image = FluxPipeline._prepare_latent_image_ids(1, side, side, x_BNC.device, torch.float32)
    return denoiser(hidden_states=x_BNC, timestep=t_B, guidance=scale_B, img_ids=image, return_dict=False, **text)[0]


def train_flow(
    batches: Batches,
    work: Path,
    config: TrainConfig,
    *,
    start: torch.nn.Module | None = None,
) -> torch.nn.Module:
    """The transformer's running average after `config.steps` of flow matching, captions dropped once in ten.

    With `start`, training begins with its weights; at guidance scale 1 they predict the velocity of flow matching.
    """
    torch.manual_seed(config.seed)
    model = transformer()
    if start is not None:
        model.load_state_dict(start.state_dict())
    denoiser: Denoiser = config.compiled(model)

    def loss(step: int) -> Tensor:
        ids, clean, noise, t, length, source = batches("flow", step)
        dropped = torch.rand(len(ids), generator=source) < 0.1
        text = batches.encode(torch.where(dropped[:, None], batches.empty, ids), length)
        x = torch.lerp(clean, noise, t.view(-1, 1, 1))
        return (velocity(denoiser, text, x, t, torch.ones_like(t)) - (noise - clean)).square().mean()

    return train_part("flow", model, loss, steps=config.steps, rate=config.rate, work=work)


def train_guidance(
    teacher: torch.nn.Module, batches: Batches, work: Path, config: TrainConfig
) -> FluxTransformer2DModel:
    """A copy of `teacher` that predicts the guided velocity in one call, for scales 1 to 6."""
    teacher = teacher.to(DEVICE)
    model = copy.deepcopy(teacher).requires_grad_(True).train()
    denoiser: Denoiser = config.compiled(model)
    guide: Denoiser = config.compiled(teacher)

    def loss(step: int) -> Tensor:
        ids, clean, noise, t, length, source = batches("guidance", step, LONG_EVERY_GUIDED)
        scale = 1 + 5 * torch.rand(len(ids), generator=source).to(DEVICE)
        x = torch.lerp(clean, noise, t.view(-1, 1, 1))
        with torch.no_grad():
            text = batches.encode(torch.cat([ids, batches.empty.expand_as(ids)]), components.TEXT_LENGTH)
            both = velocity(guide, text, x.repeat(2, 1, 1), t.repeat(2), torch.ones_like(t).repeat(2))
            with_text, without = both.chunk(2)
            target = guided_velocity(with_text, without, scale)
        return (velocity(denoiser, batches.encode(ids, length), x, t, scale) - target).square().mean()

    smooth = train_part("guidance", model, loss, steps=config.steps, rate=config.rate, work=work, average=0.99)
    assert isinstance(smooth, FluxTransformer2DModel)
    return smooth


def pipeline(vae: AutoencoderKL, encoder: FluxTextEncoder, denoiser: FluxTransformer2DModel) -> FluxPipeline:
    """The stock pipeline around the trained parts."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=64, max_image_seq_len=4096
        ),
        vae=vae,
        text_encoder=encoder.text_encoder,
        tokenizer=components.tokenizer(),
        text_encoder_2=encoder.text_encoder_2,
        tokenizer_2=components.tokenizer(),
        transformer=denoiser,
    )


def call() -> dict[str, int | float]:
    """The arguments of a pipeline call, stored as sampling.json."""
    return {
        "height": rendering.SIZE,
        "width": rendering.SIZE,
        "num_inference_steps": 50,
        "guidance_scale": DEFAULT_GUIDANCE,
        "max_sequence_length": components.TEXT_LENGTH,
    }
