"""Tiny pipelines that need more than a prompt: a picture to move, a picture to follow, a picture to change."""

from __future__ import annotations

import inspect

from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    FluxControlPipeline,
    FluxImg2ImgPipeline,
    FluxTransformer2DModel,
)

from adatsq_pipe.stages.scenes import components
from tests.tiny import flux
from tests.zoo.parts import T5, Built, words
from tests.zoo.videos import CLIP


def moved() -> Built:
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=8, out_channels=4, time_embed_dim=2, text_embed_dim=T5,
        num_layers=2, sample_width=2, sample_height=2, sample_frames=5, max_text_seq_length=12,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2)
    pipe = CogVideoXImageToVideoPipeline(
        transformer=transformer, scheduler=CogVideoXDDIMScheduler(), vae=vae,
        text_encoder=components.t5_text_encoder(), tokenizer=words(),
    )  # fmt: skip
    return pipe, dict(CLIP)


def followed() -> Built:
    pipe, call = flux()
    parts = {n: part for n, part in pipe.components.items() if n in inspect.signature(FluxControlPipeline).parameters}
    config = {key: value for key, value in pipe.transformer.config.items() if not key.startswith("_")}
    parts["transformer"] = FluxTransformer2DModel(**{**config, "in_channels": 32, "out_channels": 16})
    return FluxControlPipeline(**parts), call


def changed() -> Built:
    pipe, call = flux()
    return FluxImg2ImgPipeline(**pipe.components), call


BUILDERS = {"moved": (moved, "image"), "followed": (followed, "control_image"), "changed": (changed, "image")}
