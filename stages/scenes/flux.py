"""scenes/flux-dev: its transformer, the fixed latent space, and the pipeline folder they become."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from adatsq_pipe.stages.scenes import captions as grammar
from adatsq_pipe.stages.scenes import components, world

LATENT_CHANNELS = 8
DEFAULT_GUIDANCE = 3.5


def flux_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=components.TEXT_WIDTH,
        pooled_projection_dim=components.TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )


class FluxDenoiser(nn.Module):
    """Captions' token ids, packed noisy latents, time and guidance in; velocity out."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = flux_transformer()
        self.text_encoder = components.clip_text_encoder()
        self.text_encoder_2 = components.t5_text_encoder()
        self.call: Callable[..., tuple[Tensor]] = self.transformer.__call__

    def forward(self, ids_pooled: Tensor, ids: Tensor, x_BNC: Tensor, t_B: Tensor, scale_B: Tensor) -> Tensor:
        side = math.isqrt(x_BNC.shape[1])
        return self.call(
            hidden_states=x_BNC,
            timestep=t_B,
            guidance=scale_B,
            pooled_projections=self.text_encoder(ids_pooled).pooler_output,
            encoder_hidden_states=self.text_encoder_2(ids)[0],
            txt_ids=torch.zeros(ids.shape[1], 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(1, side, side, x_BNC.device, torch.float32),
            return_dict=False,
        )[0]


def pack(latents_BCHW: Tensor) -> Tensor:
    packed: Tensor = FluxPipeline._pack_latents(latents_BCHW, *latents_BCHW.shape)
    return packed


def flux_pipeline(vae: AutoencoderKL, denoiser: FluxDenoiser) -> FluxPipeline:
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=64, max_image_seq_len=4096
        ),
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=components.tokenizer(),
        text_encoder_2=denoiser.text_encoder_2,
        tokenizer_2=components.tokenizer(),
        transformer=denoiser.transformer,
    )


def export(vae: AutoencoderKL, denoiser: FluxDenoiser, out: Path) -> None:
    """Write the pipeline folder: the transformer and the autoencoder in bf16.

    The text encoders stay fp32: transformers loads what is stored, diffusers loads fp32 unless told otherwise, and a
    plain `from_pretrained` must give one dtype throughout.
    """
    pipeline = flux_pipeline(vae, denoiser)
    pipeline.transformer.to(torch.bfloat16)
    pipeline.vae.to(torch.bfloat16)
    pipeline.save_pretrained(out)
    call = {
        "height": world.SIZE,
        "width": world.SIZE,
        "num_inference_steps": 50,
        "guidance_scale": DEFAULT_GUIDANCE,
        "max_sequence_length": components.TEXT_LENGTH,
    }
    (out / "sampling.json").write_text(json.dumps({"call": call}, indent=1) + "\n")


def grid(pipeline: FluxPipeline, out: Path, steps: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wanted = grammar.requests(32, split="held_out", seed=0)
    captions = [r.caption for r in wanted]
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        captions, height=world.SIZE, width=world.SIZE, num_inference_steps=steps, guidance_scale=DEFAULT_GUIDANCE,
        max_sequence_length=components.TEXT_LENGTH, generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    figure, axes = plt.subplots(4, 8, figsize=(12, 6.6))
    for axis, picture, caption in zip(axes.flat, pictures, captions, strict=True):
        axis.imshow(picture)
        axis.set_title(caption.replace(" left", "\nleft").replace(" right", "\nright"), fontsize=6)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(out, dpi=80)
