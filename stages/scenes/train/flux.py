"""scenes/flux-dev: how its transformer is trained, and the pipeline folder it becomes.

Flow matching on logit-normal times; then guidance distillation: the student learns the classifier-free-guided field of
the frozen average (Meng et al. 2210.03142), so that one call per step is enough.
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
from adatsq_pipe.stages.scenes.train.text_encoder import Reader
from adatsq_pipe.stages.scenes.train.training import DEVICE, Lessons, generator, train_part
from adatsq_pipe.stages.scenes.world import rendering

DEFAULT_GUIDANCE = 3.5
LONG_TEXT = 512
"""Plain pipeline calls pad captions to 512 tokens; every so many batches one is padded so, and smaller."""
LONG_EVERY = 16
LONG_EVERY_GUIDED = 2
"""In distillation, whose targets are read from short captions, so that the long reading learns from the short one."""
TIME_SHIFT = 0.4
"""Logit-normal times are moved towards noise, where it is decided what goes where."""

SHIFT = math.exp(0.5)
"""What the pipeline's scheduler makes of 64 image tokens."""

Field = Callable[..., tuple[Tensor]]


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
    """The classifier-free weight that an embedded guidance scale stands for; scale 1 is no guidance."""
    return 1 + (scale - 1) / 2.5


def shifted(t: float) -> float:
    """The noise level that the pipeline's scheduler makes of an even one."""
    return SHIFT * t / (1 + (SHIFT - 1) * t)


def pack(latents_BCHW: Tensor) -> Tensor:
    packed: Tensor = FluxPipeline._pack_latents(latents_BCHW, *latents_BCHW.shape)
    return packed


@torch.no_grad()
def pictures(vae: AutoencoderKL, packed_BNC: Tensor) -> npt.NDArray[np.float32]:
    """What packed latents show: float32 `[B, SIZE, SIZE, 3]` in [0, 1]."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    z = FluxPipeline._unpack_latents(packed_BNC.to(vae.device), rendering.SIZE, rendering.SIZE, factor)
    decoded = vae.decode(z / vae.config.scaling_factor + vae.config.shift_factor).sample
    shown: npt.NDArray[np.float32] = (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu().numpy()
    return shown


class Texts:
    """What the frozen readers say of captions."""

    def __init__(self, reader: Reader | FluxPipeline) -> None:
        self.reader = reader.to(DEVICE)
        self.empty, self.pad = components.ids([""])[0], components.tokenizer().pad_token_id

    @torch.no_grad()
    def read(self, ids: Tensor, length: int) -> dict[str, Tensor]:
        """The transformer's text inputs for token ids `[B, TEXT_LENGTH]`, padded to `length`."""
        ids = ids.to(DEVICE)
        longer = torch.nn.functional.pad(ids, (0, length - ids.shape[1]), value=self.pad)
        return {
            "pooled_projections": self.reader.text_encoder(ids).pooler_output,
            "encoder_hidden_states": self.reader.text_encoder_2(longer)[0],
            "txt_ids": torch.zeros(length, 3, device=DEVICE),
        }


class Batches(Texts):
    """Seeded batches of the training set, with what is said of their captions."""

    def __init__(self, reader: Reader | FluxPipeline, scenes: dict[str, Tensor], *, seed: int, size: int) -> None:
        super().__init__(reader)
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


def velocity(field: Field, text: dict[str, Tensor], x_BNC: Tensor, t_B: Tensor, scale_B: Tensor | None) -> Tensor:
    """What the transformer predicts for packed latents at times `t_B` (1 = noise) and guidance scales."""
    side = math.isqrt(x_BNC.shape[1])
    image = FluxPipeline._prepare_latent_image_ids(1, side, side, x_BNC.device, torch.float32)
    return field(hidden_states=x_BNC, timestep=t_B, guidance=scale_B, img_ids=image, return_dict=False, **text)[0]


def train_flow(
    batches: Batches,
    work: Path,
    how: Lessons,
    *,
    start: torch.nn.Module | None = None,
) -> torch.nn.Module:
    """The transformer's running average after `how.steps` of flow matching, captions dropped once in ten.

    With `start` from its weights: a guided one gives at scale 1 what flow matching had taught it.
    """
    torch.manual_seed(how.seed)
    model = transformer()
    if start is not None:
        model.load_state_dict(start.state_dict())
    field: Field = how.compiled(model)

    def loss(step: int) -> Tensor:
        ids, clean, noise, t, length, source = batches("flow", step)
        dropped = torch.rand(len(ids), generator=source) < 0.1
        text = batches.read(torch.where(dropped[:, None], batches.empty, ids), length)
        x = torch.lerp(clean, noise, t.view(-1, 1, 1))
        return (velocity(field, text, x, t, torch.ones_like(t)) - (noise - clean)).square().mean()

    return train_part("flow", model, loss, steps=how.steps, rate=how.rate, work=work)


def train_guidance(teacher: torch.nn.Module, batches: Batches, work: Path, how: Lessons) -> FluxTransformer2DModel:
    """A copy of `teacher` that gives its guided field in one call, for scales 1 to 6."""
    teacher = teacher.to(DEVICE)
    model = copy.deepcopy(teacher).requires_grad_(True).train()
    field: Field = how.compiled(model)
    guide: Field = how.compiled(teacher)

    def loss(step: int) -> Tensor:
        ids, clean, noise, t, length, source = batches("guidance", step, LONG_EVERY_GUIDED)
        scale = 1 + 5 * torch.rand(len(ids), generator=source).to(DEVICE)
        x = torch.lerp(clean, noise, t.view(-1, 1, 1))
        with torch.no_grad():
            asked = batches.read(torch.cat([ids, batches.empty.expand_as(ids)]), components.TEXT_LENGTH)
            both = velocity(guide, asked, x.repeat(2, 1, 1), t.repeat(2), torch.ones_like(t).repeat(2))
            with_text, without = both.chunk(2)
            target = without + guidance_weight(scale).view(-1, 1, 1) * (with_text - without)
        return (velocity(field, batches.read(ids, length), x, t, scale) - target).square().mean()

    smooth = train_part("guidance", model, loss, steps=how.steps, rate=how.rate, work=work, average=0.99)
    assert isinstance(smooth, FluxTransformer2DModel)
    return smooth


def pipeline(vae: AutoencoderKL, reader: Reader, denoiser: FluxTransformer2DModel) -> FluxPipeline:
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=64, max_image_seq_len=4096
        ),
        vae=vae,
        text_encoder=reader.text_encoder,
        tokenizer=components.tokenizer(),
        text_encoder_2=reader.text_encoder_2,
        tokenizer_2=components.tokenizer(),
        transformer=denoiser,
    )


def call() -> dict[str, int | float]:
    """What a call of this pipeline needs to be told; kept beside it as sampling.json."""
    return {
        "height": rendering.SIZE,
        "width": rendering.SIZE,
        "num_inference_steps": 50,
        "guidance_scale": DEFAULT_GUIDANCE,
        "max_sequence_length": components.TEXT_LENGTH,
    }
