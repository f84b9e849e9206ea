"""Tiny pipelines of the latest models that draw videos, some with sound."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HeliosPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    LTX2ConditionPipeline,
    LTX2DFRPipeline,
    LTX2HDRPipeline,
    LTX2InContextPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
    SkyReelsV2DiffusionForcingPipeline,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from adatsq_pipe.stages.scenes.train import components
from tests.zoo.parts import (
    SQUARE,
    T5,
    WIDTH,
    Built,
    autoencoder_wan,
    clip,
    fill,
    gemma3,
    qwen_vl,
    t5gemma2,
    umt5,
    words,
)
from tests.zoo.videos import skyreels


def _ltx2(kind: Any, more: dict[str, object], *, marker: bool = False) -> Built:
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8,
        audio_cross_attention_dim=16, num_layers=2, caption_channels=WIDTH, vae_scale_factors=(4, 4, 4),
        use_keyframes_abs_pos_embedding=marker,
    )  # fmt: skip
    fill(transformer)
    vae = AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,) * 2, down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8,) * 2, layers_per_block=(1,) * 3, decoder_layers_per_block=(1,) * 3,
        spatio_temporal_scaling=(True,) * 2, decoder_spatio_temporal_scaling=(True,) * 2,
        decoder_inject_noise=(False,) * 3, downsample_type=("spatiotemporal",) * 2,
        upsample_type=("spatiotemporal",) * 2, upsample_residual=(True,) * 2, upsample_factor=(1, 1), patch_size=1,
    )  # fmt: skip
    ear = AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    )
    voice = LTX2Vocoder(
        in_channels=16, hidden_channels=8, upsample_kernel_sizes=[4], upsample_factors=[2], resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )  # fmt: skip
    bridge = LTX2TextConnectors(
        caption_channels=WIDTH, text_proj_in_factor=3, video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8, video_connector_num_layers=1,
        video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
    )  # fmt: skip
    tokenizer = words()
    tokenizer.padding_side = "left"  # as the first call makes it
    pipe = kind(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, audio_vae=ear, text_encoder=gemma3(), tokenizer=tokenizer,
        connectors=bridge, transformer=transformer, vocoder=voice,
    )  # fmt: skip
    return pipe, {
        **SQUARE, "height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16, **more,
    }  # fmt: skip


_GUIDED_ONCE: dict[str, object] = {"stg_scale": 0.0, "modality_scale": 1.0}
_SOUND_TOO: dict[str, object] = {**_GUIDED_ONCE, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0}


def ltx2() -> Built:
    return _ltx2(LTX2Pipeline, _SOUND_TOO)


def ltx2_guided() -> Built:
    """As it is called by default: three calls in each step, of which the first has twice as many samples."""
    return _ltx2(LTX2Pipeline, {})


def ltx2_condition() -> Built:
    return _ltx2(LTX2ConditionPipeline, _SOUND_TOO)


def ltx2_hdr() -> Built:
    return _ltx2(LTX2HDRPipeline, _GUIDED_ONCE)


def ltx2_in_context() -> Built:
    return _ltx2(LTX2InContextPipeline, _SOUND_TOO)


def ltx2_dfr() -> Built:
    """Its noise levels are fixed, eight of them."""
    pipe, call = _ltx2(LTX2DFRPipeline, {}, marker=True)
    del call["guidance_scale"], call["num_inference_steps"]
    return pipe, call


def hunyuan_video15() -> Built:
    """Drops the first 108 tokens of what it reads, so that what stands before the prompt has to be as long."""
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_refiner_layers=1,
        mlp_ratio=2.0, text_embed_dim=WIDTH, text_embed_2_dim=T5, image_embed_dim=8, rope_axes_dim=(4, 6, 6),
        target_size=16,
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8,) * 3, layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )  # fmt: skip
    reader = words()
    reader.chat_template = "{% for m in messages %}{{ m['content'] * (1 if m['role'] == 'user' else 2) }}{% endfor %}"
    pipe = HunyuanVideo15Pipeline(
        text_encoder=qwen_vl(3).model.language_model, tokenizer=reader, transformer=transformer, vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder_2=components.t5_text_encoder(), tokenizer_2=words(),
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )  # fmt: skip
    return pipe, {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2}


def kandinsky6() -> Built:
    from diffusers import Kandinsky6TI2VAPipeline, Kandinsky6Transformer3DModel  # since 0.42
    from diffusers.pipelines.kandinsky6.pipeline_kandinsky6_ti2va import MMAudioVAE, MMAudioVocoder

    transformer = Kandinsky6Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=WIDTH, in_text_dim2=T5, time_dim=16, model_dim=32, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6), in_audio_dim=4, out_audio_dim=4, ca_rope=True,
        cross_gates=True, fix_modulation=True,
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4
    )
    pipe = Kandinsky6TI2VAPipeline(
        transformer=transformer, vae=vae, text_encoder=qwen_vl(), tokenizer=words(), text_encoder_2=clip(),
        tokenizer_2=words(77), scheduler=FlowMatchEulerDiscreteScheduler(),
        audio_vae=MMAudioVAE(
            mel_bins=8, latent_channels=4, hidden_channels=16, layers_per_block=1, channel_multipliers=(1, 1), n_fft=64,
            hop_length=16, sample_rate=1600,
        ),
        vocoder=MMAudioVocoder(
            num_mels=8, upsample_initial_channel=8, upsample_rates=(4, 4), upsample_kernel_sizes=(8, 8),
            resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3, 5),),
        ),
    )  # fmt: skip
    return pipe, {**SQUARE, "num_frames": 5, "max_sequence_length": 64}


def motif() -> Built:
    transformer = MotifVideoTransformer3DModel(
        in_channels=33, out_channels=16, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=1, num_decoder_layers=1, mlp_ratio=2.0, text_embed_dim=WIDTH, rope_axes_dim=(4, 6, 6),
        enable_text_cross_attention_dual=True, enable_text_cross_attention_single=True,
    )  # fmt: skip
    pipe = MotifVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder_wan(), text_encoder=t5gemma2(), tokenizer=words(),
        transformer=transformer, guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )  # fmt: skip
    return pipe, {
        "height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 12,
    }  # fmt: skip


def helios_of(kind: Any, scheduler: Any, steps: dict[str, object], **more: object) -> Built:
    transformer = HeliosTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, text_dim=WIDTH, freq_dim=32, ffn_dim=32, num_layers=2,
        rope_dim=(4, 6, 6),
    )  # fmt: skip
    pipe = kind(
        tokenizer=words(), text_encoder=umt5(), vae=autoencoder_wan(), scheduler=scheduler, transformer=transformer,
        **more,
    )  # fmt: skip
    return pipe, {
        "height": 64, "width": 64, "num_frames": 5, "max_sequence_length": 12, "num_latent_frames_per_chunk": 2,
        **steps,
    }  # fmt: skip


def helios() -> Built:
    return helios_of(HeliosPipeline, HeliosScheduler(stages=1, stage_range=[0, 1]), {"num_inference_steps": 2})


def helios_chunks() -> Built:
    """Two chunks, one after the other."""
    pipe, call = helios()
    return pipe, {**call, "num_frames": 10}


def skyreels_forcing() -> Built:
    pipe, call = skyreels()
    return SkyReelsV2DiffusionForcingPipeline(**pipe.components), dict(call)


BUILDERS = {
    "ltx2": ltx2, "ltx2-guided": ltx2_guided, "ltx2-condition": ltx2_condition, "ltx2-hdr": ltx2_hdr,
    "ltx2-in-context": ltx2_in_context, "ltx2-dfr": ltx2_dfr, "hunyuan-video1.5": hunyuan_video15,
    "kandinsky6": kandinsky6, "motif-video": motif, "helios": helios, "helios-chunks": helios_chunks,
    "skyreels-v2-forcing": skyreels_forcing,
}  # fmt: skip
