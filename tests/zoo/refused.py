"""Tiny pipelines that cannot be taken: no transformer, no timestep, tokens for latents, a cache between calls."""

from __future__ import annotations

from diffusers import (
    AmusedPipeline,
    AmusedScheduler,
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    DDIMScheduler,
    Flux2KleinKVPipeline,
    HeliosDMDScheduler,
    HeliosPyramidPipeline,
    HeliosScheduler,
    StableDiffusionPipeline,
    Transformer2DModel,
    UNet2DConditionModel,
    UVit2DModel,
    VQDiffusionPipeline,
    VQDiffusionScheduler,
    VQModel,
)
from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import LearnedClassifierFreeSamplingEmbeddings
from diffusers.schedulers import FlowMapEulerDiscreteScheduler

from adatsq_pipe.stages.scenes.train import components
from tests.zoo.language import flux2_klein
from tests.zoo.latest import qwen_image21
from tests.zoo.latest_videos import helios_of
from tests.zoo.parts import (
    SQUARE,
    T5,
    WIDTH,
    Built,
    autoencoder_wan,
    clip,
    clip_projected,
    umt5,
    words,
)


def unet() -> Built:
    denoiser = UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, sample_size=8, norm_num_groups=4, cross_attention_dim=T5,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        unet=denoiser, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), vae=components.autoencoder(4),
        text_encoder=clip(), tokenizer=words(77), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
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


def vq_diffusion() -> Built:
    """Its latents are tokens. What it saves this diffusers does not load: one of its parts has been moved."""
    vae = VQModel(
        block_out_channels=(8, 8), latent_channels=4, num_vq_embeddings=16, vq_embed_dim=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    transformer = Transformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, cross_attention_dim=T5, num_vector_embeds=17,
        sample_size=8, num_embeds_ada_norm=100, norm_type="ada_norm",
    )  # fmt: skip
    pipe = VQDiffusionPipeline(
        vqvae=vae, text_encoder=clip(), tokenizer=words(77), transformer=transformer,
        scheduler=VQDiffusionScheduler(num_vec_classes=17),
        learned_classifier_free_sampling_embeddings=LearnedClassifierFreeSamplingEmbeddings(learnable=False),
    )  # fmt: skip
    return pipe, {"num_inference_steps": 2, "guidance_scale": 3.0}


def anyflow_far() -> Built:
    """Draws a video chunk by chunk and keeps what was drawn in a cache of keys and values."""
    transformer = AnyFlowFARTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=WIDTH, freq_dim=32, ffn_dim=32, num_layers=2,
        rope_max_seq_len=64, chunk_partition=(1, 1),
    )  # fmt: skip
    pipe = AnyFlowFARPipeline(
        tokenizer=words(), text_encoder=umt5(), transformer=transformer, vae=autoencoder_wan(),
        scheduler=FlowMapEulerDiscreteScheduler(),
    )  # fmt: skip
    return pipe, {**SQUARE, "height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 12}


def qwen_image21_cached() -> Built:
    """As it is called by default: keeps keys and values of the prompt from the first step for the others."""
    pipe, call = qwen_image21()
    return pipe, {**call, "use_kv_cache": True}


_PYRAMID: dict[str, object] = {"pyramid_num_inference_steps_list": [1, 1, 1]}


def helios_pyramid() -> Built:
    """Draws small first: its latents grow on the way."""
    return helios_of(HeliosPyramidPipeline, HeliosScheduler(gamma=0.25), _PYRAMID)


def helios_distilled() -> Built:
    steps = {**_PYRAMID, "guidance_scale": 1.0}
    return helios_of(HeliosPyramidPipeline, HeliosDMDScheduler(gamma=0.25), steps, is_distilled=True)


BUILDERS = {
    "unet": unet, "amused": amused, "flux2-klein-kv": flux2_klein_kv, "vq-diffusion": vq_diffusion,
    "anyflow-far": anyflow_far, "qwen-image2.1-cached": qwen_image21_cached, "helios-pyramid": helios_pyramid,
    "helios-distilled": helios_distilled,
}  # fmt: skip
