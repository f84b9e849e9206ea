"""Tiny text-to-video pipelines."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from adatsq_pipe.stages.scenes.train import components
from tests.zoo.parts import SQUARE, T5, WIDTH, Built, autoencoder_wan, clip, gemma2, llama, qwen_vl, umt5, words

CLIP = {**SQUARE, "num_frames": 5, "max_sequence_length": 12}


def hunyuan_video() -> Built:
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, guidance_embeds=True, text_embed_dim=WIDTH, pooled_projection_dim=T5,
        rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4
    )
    pipe = HunyuanVideoPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=llama(),
        tokenizer=words(), text_encoder_2=clip(), tokenizer_2=words(77),
    )  # fmt: skip
    return pipe, {**CLIP, "max_sequence_length": 16}


def _ltx(kind: Any) -> Built:
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=2, caption_channels=T5,
    )  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1, patch_size_t=1,
    )  # fmt: skip
    pipe = kind(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae,
        text_encoder=components.t5_text_encoder(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**CLIP, "height": 32, "width": 32, "num_frames": 9}


def ltx() -> Built:
    return _ltx(LTXPipeline)


def ltx_condition() -> Built:
    return _ltx(LTXConditionPipeline)


def cogvideox() -> Built:
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=T5,
        num_layers=2, sample_width=2, sample_height=2, sample_frames=5, max_text_seq_length=12,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2)
    pipe = CogVideoXPipeline(
        transformer=transformer, scheduler=CogVideoXDDIMScheduler(), vae=vae,
        text_encoder=components.t5_text_encoder(), tokenizer=words(),
    )  # fmt: skip
    return pipe, dict(CLIP)


def mochi() -> Built:
    transformer = MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, pooled_projection_dim=16, in_channels=12,
        text_embed_dim=T5, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5
    )
    pipe = MochiPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae,
        text_encoder=components.t5_text_encoder(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**CLIP, "num_frames": 7}


def allegro() -> Built:
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=24, sample_width=2, sample_height=2, sample_frames=2, caption_channels=T5,
    )  # fmt: skip
    vae = AutoencoderKLAllegro(latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2)
    pipe = AllegroPipeline(
        transformer=transformer, scheduler=DDIMScheduler(), vae=vae, text_encoder=components.t5_text_encoder(),
        tokenizer=words(),
    )  # fmt: skip
    return pipe, {**CLIP, "num_frames": 8, "clean_caption": False}


def latte() -> Built:
    transformer = LatteTransformer3DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=4, caption_channels=T5,
        in_channels=4, cross_attention_dim=32, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, video_length=2,
    )  # fmt: skip
    pipe = LattePipeline(
        transformer=transformer, scheduler=DDIMScheduler(), vae=components.autoencoder(4),
        text_encoder=components.t5_text_encoder(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "video_length": 2, "clean_caption": False}


def easyanimate() -> Built:
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=WIDTH, num_layers=1, mmdit_layers=1, sample_width=8, sample_height=8, patch_size=2,
    )  # fmt: skip
    vae = AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=[8] * 4, layers_per_block=1, norm_num_groups=2, spatial_group_norm=False
    )
    pipe = EasyAnimatePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=qwen_vl(),
        tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "num_frames": 5, "negative_prompt": ""}


def skyreels() -> Built:
    transformer = SkyReelsV2Transformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=WIDTH, freq_dim=32, ffn_dim=32, num_layers=2,
        rope_max_seq_len=32,
    )  # fmt: skip
    pipe = SkyReelsV2Pipeline(
        transformer=transformer, vae=autoencoder_wan(), text_encoder=umt5(), tokenizer=words(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )  # fmt: skip
    return pipe, dict(CLIP)


def sana_video() -> Built:
    transformer = SanaVideoTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, num_cross_attention_heads=2,
        cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=WIDTH, rope_max_seq_len=32,
    )  # fmt: skip
    pipe = SanaVideoPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder_wan(),
        text_encoder=gemma2(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {
        **SQUARE, "height": 32, "width": 32, "frames": 5, "use_resolution_binning": False,
        "complex_human_instruction": "", "max_sequence_length": 12,
    }  # fmt: skip


def wan22() -> Built:
    """Two denoisers, for the early steps and for the late ones."""
    sizes: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 12, "text_dim": WIDTH, "freq_dim": 32, "ffn_dim": 32,
        "num_layers": 1, "rope_max_seq_len": 32,
    }  # fmt: skip
    pipe = WanPipeline(
        transformer=WanTransformer3DModel(**sizes), transformer_2=WanTransformer3DModel(**sizes), boundary_ratio=0.9,
        vae=autoencoder_wan(), text_encoder=umt5(), tokenizer=words(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )  # fmt: skip
    return pipe, dict(CLIP)


BUILDERS = {
    "hunyuan-video": hunyuan_video, "ltx": ltx, "ltx-condition": ltx_condition, "cogvideox": cogvideox, "mochi": mochi,
    "allegro": allegro, "latte": latte, "easyanimate": easyanimate, "skyreels-v2": skyreels, "sana-video": sana_video,
    "wan2.2": wan22,
}  # fmt: skip
