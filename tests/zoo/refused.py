"""Tiny pipelines that cannot be taken: no transformer, no timestep, a cache between calls."""

from __future__ import annotations

from diffusers import (
    AmusedPipeline,
    AmusedScheduler,
    DDIMScheduler,
    Flux2KleinKVPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UVit2DModel,
    VQModel,
)

from adatsq_pipe.stages.scenes import components
from tests.zoo.language import flux2_klein
from tests.zoo.parts import SQUARE, T5, Built, clip, clip_projected, words


def unet() -> Built:
    denoiser = UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, sample_size=8, norm_num_groups=4, cross_attention_dim=T5,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        unet=denoiser, scheduler=DDIMScheduler(), vae=components.autoencoder(4), text_encoder=clip(),
        tokenizer=words(77), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return pipe, dict(SQUARE)


def amused() -> Built:
    """Fills in tokens; there is no noise, and no level of it."""
    transformer = UVit2DModel(
        hidden_size=8, cond_embed_dim=T5 // 2, micro_cond_encode_dim=2, micro_cond_embed_dim=10, encoder_hidden_size=32,
        vocab_size=32, codebook_size=32, in_channels=8, block_out_channels=8, num_res_blocks=1, block_num_heads=1,
        num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, sample_size=4,
    )  # fmt: skip
    vae = VQModel(block_out_channels=(8,), latent_channels=8, num_vq_embeddings=32, norm_num_groups=4, sample_size=16)
    pipe = AmusedPipeline(
        vqvae=vae, tokenizer=words(77), text_encoder=clip_projected(), transformer=transformer,
        scheduler=AmusedScheduler(mask_token_id=31),
    )  # fmt: skip
    return pipe, dict(SQUARE)


def flux2_klein_kv() -> Built:
    pipe, call = flux2_klein()
    return Flux2KleinKVPipeline(**pipe.components), call


BUILDERS = {"unet": unet, "amused": amused, "flux2-klein-kv": flux2_klein_kv}
